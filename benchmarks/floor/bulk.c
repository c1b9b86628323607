/*
 * All of an area from a source process, as fast as it goes; nobody touches it meanwhile.
 *
 *   pipe      runs of 256 KiB through a pipe, each placed by one UFFDIO_COPY
 *   continue  shared memory, which the source has filled: UFFDIO_CONTINUE maps what is there, a run
 *             of 2 MiB a doorbell
 */
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "floor.h"

enum { PIPE_RUN = 256 << 10, CONTINUE_RUN = 2 << 20 };

struct run {
    uint64_t offset, bytes;
    uint8_t unused[HEADER - 2 * sizeof(uint64_t)];
};

static size_t run_at(struct run *r, size_t offset, size_t total, size_t most)
{
    r->offset = offset;
    r->bytes = total - offset < most ? total - offset : most;
    return r->bytes;
}

static void send_runs(int fd, const uint8_t *image, size_t total)
{
    struct run r = {0};

    for (size_t at = 0; at < total; at += r.bytes) {
        run_at(&r, at, total, PIPE_RUN);
        send_pages(fd, &r, image + r.offset, r.bytes);
    }
}

static void send_doorbells(int fd, size_t total)
{
    struct run r = {0};

    for (size_t at = 0; at < total; at += r.bytes) {
        run_at(&r, at, total, CONTINUE_RUN);
        write_all(fd, &r, sizeof(r));
    }
}

static void receive_pages(int fd, int uffd, uint8_t *ram, size_t total)
{
    struct run r;
    /* The run is aligned to a page, its header lies ahead of it: one read gets both. */
    uint8_t *pages = map_private(BASE_PAGE + PIPE_RUN, false) + BASE_PAGE;

    for (size_t done = 0; done < total; done += r.bytes) {
        size_t expected = run_at(&r, done, total, PIPE_RUN);

        if (!read_all(fd, pages - sizeof(r), sizeof(r) + expected)) {
            failed("the source has ended");
        }
        memcpy(&r, pages - sizeof(r), sizeof(r));
        uffd_place(uffd, ram + r.offset, pages, r.bytes, false);
    }
}

static void map_runs(int fd, int uffd, uint8_t *ram, size_t total)
{
    struct run r;

    for (size_t done = 0; done < total; done += r.bytes) {
        if (!read_all(fd, &r, sizeof(r))) {
            failed("the source has ended");
        }
        uffd_map(uffd, ram + r.offset, r.bytes);
    }
}

static _Noreturn void source(int go, int out, uint8_t *image, size_t total, const struct options *o)
{
    uint8_t byte = 1;

    if (o->spread) {
        pin_last();
    }
    fill((uint64_t *)image, total);
    write_all(out, &byte, 1);
    if (!read_all(go, &byte, 1)) {
        failed("the destination has ended");
    }
    if (!strcmp(o->kind, "pipe")) {
        send_runs(out, image, total);
    } else {
        send_doorbells(out, total);
    }
    /* Until the destination is done: to free all this meanwhile would be in its way. */
    read_all(go, &byte, 1);
    _exit(0);
}

void run_bulk(const struct options *o)
{
    bool through_pipe = !strcmp(o->kind, "pipe");
    size_t total = o->bytes & ~(size_t)(BASE_PAGE - 1);
    uint8_t *image, *ram, byte;
    int go[2], data[2], fd, uffd = uffd_open(through_pipe ? 0 : UFFD_FEATURE_MINOR_SHMEM);
    uint64_t begin, took;
    pid_t child;

    if (!through_pipe && strcmp(o->kind, "continue")) {
        fprintf(stderr, "%s is no way to send in bulk\n", o->kind);
        exit(2);
    }
    image = through_pipe ? map_image(total) : map_shared(total, &fd);
    ram = through_pipe ? map_private(total, false) : image;
    make_pipe(go);
    make_pipe(data);
    child = fork_bound();
    if (child == 0) {
        close(go[1]);
        close(data[0]);
        source(go[0], data[1], image, total, o);
    }
    close(go[0]);
    close(data[1]);
    if (o->spread) {
        pin_first();
    }
    uffd_register(uffd, ram, total,
                  through_pipe ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_MINOR);
    if (!read_all(data[0], &byte, 1)) {
        failed("the source has ended");
    }
    begin = now_ns();
    write_all(go[1], &byte, 1);
    if (through_pipe) {
        receive_pages(data[0], uffd, ram, total);
    } else {
        map_runs(data[0], uffd, ram, total);
    }
    took = now_ns() - begin;
    close(go[1]);
    check((const uint64_t *)ram, total);
    wait_for(child);
    printf("{\"bytes\": %zu, \"total_ns\": %llu, \"bytes_per_second\": %.0f}\n", total,
           (unsigned long long)took, (double)total * 1e9 / (double)took);
}
