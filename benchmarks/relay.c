/*
 * The floor: a relay that does nothing but pass frames on, so that it costs what the sockets cost.
 *
 *     cc -O2 -o relay relay.c && ./relay PORT
 *
 * It speaks just enough of the wire for benchmarks/peers.py.  The first frame of a connection registers it and is
 * answered with HEARTBEAT; every other frame goes to the user that it names, with the sender's ID put in its place, or
 * to everybody else if it names nobody.  What a chunk brings for one receiver goes out with one send, and what a
 * receiver does not take waits for it.  There are no limits, no calls, no heartbeats and no errors: whoever breaks a
 * rule is disconnected.  It listens on the loopback only, and runs on Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEARTBEAT = 7,
    MAX_USER_ID = 128,
    CHUNK = 65536,      /* bytes that are read at once */
    FRAME = 2 + 65535,  /* bytes of the longest frame */
    EVENTS = 256,       /* that are taken at once */
    BUCKETS = 1 << 16,  /* of the table of users */
    MAX_WAITING = 1 << 26 /* bytes that wait for one receiver */
};

struct connection {
    int file;
    int userLength; /* 0 until it has registered */
    uint8_t user[MAX_USER_ID];
    uint8_t *partial; /* the beginning of a frame whose rest has not come yet */
    size_t partialLength;
    uint8_t *out; /* what has not been sent yet */
    size_t outLength, outSize;
    int isTouched;  /* it is in the list of those that this chunk has something for */
    int isAwaited;  /* epoll tells when it can take more */
    int isOver;     /* it is closed when the events that are known have been seen to */
    struct connection *nextInBucket;
    struct connection *previous, *next; /* among all that are registered */
};

static int epollFile;
static struct connection *buckets[BUCKETS];
static struct connection all = {.previous = &all, .next = &all};
static struct connection **touched, **over;
static size_t touchedCount, overCount, room;

static void *need(void *memory)
{
    if (!memory) {
        perror("relay");
        exit(1);
    }
    return memory;
}

static struct connection **bucketOf(const uint8_t *user, int length)
{
    uint32_t hash = 5381;
    for (int i = 0; i < length; i++)
        hash = hash * 33 + user[i];
    return &buckets[(hash ^ hash >> 16) % BUCKETS];
}

static struct connection *find(const uint8_t *user, int length)
{
    struct connection *c = *bucketOf(user, length);
    while (c && !(c->userLength == length && !memcmp(c->user, user, length)))
        c = c->nextInBucket;
    return c;
}

static void watch(struct connection *c, int operation, int isAwaited)
{
    struct epoll_event event = {.events = EPOLLIN | (isAwaited ? EPOLLOUT : 0), .data.ptr = c};
    c->isAwaited = isAwaited;
    if (epoll_ctl(epollFile, operation, c->file, &event))
        perror("relay: epoll_ctl");
}

static void end(struct connection *c)
{
    if (!c->isOver) {
        c->isOver = 1;
        over[overCount++] = c;
    }
}

static void flush(struct connection *c)
{
    size_t sent = 0;
    while (sent < c->outLength) {
        ssize_t n = send(c->file, c->out + sent, c->outLength - sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                end(c);
            break;
        }
        sent += n;
    }
    c->outLength -= sent;
    if (c->outLength)
        memmove(c->out, c->out + sent, c->outLength);
    if (!c->isOver && c->isAwaited != (c->outLength > 0))
        watch(c, EPOLL_CTL_MOD, c->outLength > 0);
}

/* Put a frame into what is for c: its own header with the sender's ID, and the data. */
static void pass(struct connection *c, int type, const struct connection *from, const uint8_t *data, size_t length)
{
    size_t payload = 3 + from->userLength + length;
    if (payload > FRAME - 2 || c->outLength + payload + 2 > MAX_WAITING) {
        end(c);
        return;
    }
    if (c->outLength + payload + 2 > c->outSize) {
        c->outSize = 2 * (c->outLength + payload + 2);
        c->out = need(realloc(c->out, c->outSize));
    }
    uint8_t *at = c->out + c->outLength;
    uint8_t header[] = {payload >> 8, payload, type, from->userLength >> 8, from->userLength};
    memcpy(at, header, sizeof header);
    memcpy(at + sizeof header, from->user, from->userLength);
    if (length)
        memcpy(at + sizeof header + from->userLength, data, length);
    c->outLength += payload + 2;
    if (!c->isTouched) {
        c->isTouched = 1;
        touched[touchedCount++] = c;
    }
}

static void take(struct connection *c, const uint8_t *payload, size_t length)
{
    size_t userLength = length < 3 ? FRAME : payload[1] << 8 | payload[2];
    if (3 + userLength > length) {
        end(c);
        return;
    }
    const uint8_t *user = payload + 3, *data = user + userLength;
    length -= 3 + userLength;
    if (!c->userLength) {
        if (!userLength || userLength > MAX_USER_ID || find(user, userLength)) {
            end(c);
            return;
        }
        struct connection **bucket = bucketOf(user, userLength);
        memcpy(c->user, user, userLength);
        c->userLength = userLength;
        c->nextInBucket = *bucket;
        *bucket = c;
        c->previous = all.previous;
        c->next = &all;
        c->previous->next = all.previous = c;
        pass(c, HEARTBEAT, c, NULL, 0);
    } else if (userLength) {
        struct connection *receiver = find(user, userLength);
        if (receiver && !receiver->isOver)
            pass(receiver, payload[0], c, data, length);
    } else {
        for (struct connection *receiver = all.next; receiver != &all; receiver = receiver->next)
            if (receiver != c && !receiver->isOver)
                pass(receiver, payload[0], c, data, length);
    }
}

static void receive(struct connection *c)
{
    static uint8_t buffer[FRAME + CHUNK];
    size_t length = c->partialLength, at = 0;
    if (length)
        memcpy(buffer, c->partial, length);
    ssize_t n = recv(c->file, buffer + length, CHUNK, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            end(c);
        return;
    }
    length += n;
    while (length - at >= 2 && !c->isOver) {
        size_t payload = buffer[at] << 8 | buffer[at + 1];
        if (length - at - 2 < payload)
            break;
        take(c, buffer + at + 2, payload);
        at += 2 + payload;
    }
    c->partialLength = length - at;
    if (c->partialLength) {
        c->partial = need(realloc(c->partial, c->partialLength));
        memcpy(c->partial, buffer + at, c->partialLength);
    }
    for (size_t i = 0; i < touchedCount; i++) {
        touched[i]->isTouched = 0;
        if (!touched[i]->isAwaited && !touched[i]->isOver)
            flush(touched[i]);
    }
    touchedCount = 0;
}

static void release(struct connection *c)
{
    if (c->userLength) {
        struct connection **link = bucketOf(c->user, c->userLength);
        while (*link != c)
            link = &(*link)->nextInBucket;
        *link = c->nextInBucket;
        c->previous->next = c->next;
        c->next->previous = c->previous;
    }
    close(c->file);
    free(c->partial);
    free(c->out);
    free(c);
}

int main(int argc, char **argv)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    room = files.rlim_cur < 1 << 20 ? files.rlim_cur : 1 << 20;
    touched = need(calloc(room, sizeof *touched));
    over = need(calloc(room, sizeof *over));

    int one = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(argc > 1 ? atoi(argv[1]) : 8888),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 4096)) {
        perror("relay");
        return 1;
    }
    epollFile = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(epollFile, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        int count = epoll_wait(epollFile, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                int file = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
                if (file < 0)
                    continue;
                if ((size_t)file >= room) {
                    close(file);
                    continue;
                }
                setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                c = need(calloc(1, sizeof *c));
                c->file = file;
                watch(c, EPOLL_CTL_ADD, 0);
                continue;
            }
            if (c->isAwaited && events[i].events & EPOLLOUT && !c->isOver)
                flush(c);
            if (events[i].events & ~EPOLLOUT && !c->isOver)
                receive(c);
        }
        while (overCount)
            release(over[--overCount]);
    }
}
