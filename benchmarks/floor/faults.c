/*
 * One vCPU touches each page of an area once, in shuffled order; each touch is a fault that a
 * source process answers. The layouts differ in who asks and who places:
 *
 *   qemu    a fault thread asks, a listen thread places
 *   one     one thread asks and places
 *   sigbus  the vCPU's own thread does both, in the handler of the signal that its fault becomes
 *   shm     as one, but both map the source's pages; the pipe has only a doorbell
 *   inline  no source: the thread places a page that is here already
 */
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "floor.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* What goes ahead of a page: with several faults under way nobody else could tell which it is. */
struct header {
    uint64_t page;
    uint8_t unused[HEADER - sizeof(uint64_t)];
};

static struct {
    size_t page_size;
    uint64_t pages;
    uint8_t *ram;     /* what the vCPU touches */
    uint8_t *image;   /* what it must become */
    uint8_t *staging; /* a header, then a page that is aligned to itself */
    int uffd;
    int request[2], answer[2];
    bool spread, shared; /* image: of layout shm */
} g;

/* ---- the source ---- */

static void serve(void)
{
    struct header h = {0};

    while (read_all(g.request[0], &h.page, sizeof(h.page))) {
        if (g.shared) {
            write_all(g.answer[1], &h.page, sizeof(h.page));
        } else {
            send_pages(g.answer[1], &h, g.image + h.page * g.page_size, g.page_size);
        }
    }
    _exit(0);
}

static pid_t start_source(void)
{
    pid_t child = fork_bound();

    if (child == 0) {
        uint8_t ready = 1;

        close(g.request[1]);
        close(g.answer[0]);
        if (g.spread) {
            pin_last();
        }
        /* Pages of its own: those of a fork would be copied at their first use. */
        fill((uint64_t *)g.image, g.pages * g.page_size);
        write_all(g.answer[1], &ready, 1);
        serve();
    }
    close(g.request[0]);
    close(g.answer[1]);
    if (!read_all(g.answer[0], &(uint8_t){0}, 1)) {
        failed("the source has ended");
    }
    /* UFFDIO_COPY from what is not mapped is begun anew, once it has been. */
    if (g.shared && madvise(g.image, g.pages * g.page_size, MADV_POPULATE_READ)) {
        not_here("MADV_POPULATE_READ");
    }
    return child;
}

/* ---- the destination ---- */

static void ask(uint64_t address)
{
    uint64_t page = (address - (uintptr_t)g.ram) / g.page_size;

    write_all(g.request[1], &page, sizeof(page));
}

/* The next page that comes; false: the source has ended. */
static bool receive_and_place(bool wake)
{
    struct header h;

    if (!read_all(g.answer[0], g.staging, sizeof(h) + g.page_size)) {
        return false;
    }
    memcpy(&h, g.staging, sizeof(h));
    uffd_place(g.uffd, g.ram + h.page * g.page_size, g.staging + sizeof(h), g.page_size, wake);
    return true;
}

static void *ask_only(void *unused)
{
    if (g.spread) {
        pin_last();
    }
    for (;;) {
        ask(uffd_next(g.uffd));
    }
    return unused;
}

static void *place_only(void *unused)
{
    if (g.spread) {
        pin_last();
    }
    while (receive_and_place(true)) {
    }
    return unused;
}

static void *ask_and_place(void *unused)
{
    if (g.spread) {
        pin_last();
    }
    do {
        ask(uffd_next(g.uffd));
    } while (receive_and_place(true));
    return unused;
}

static void *place_from_image(void *unused)
{
    uint64_t page;

    if (g.spread) {
        pin_last();
    }
    do {
        ask(uffd_next(g.uffd));
        if (!read_all(g.answer[0], &page, sizeof(page))) {
            return unused;
        }
        uffd_place(g.uffd, g.ram + page * g.page_size, g.image + page * g.page_size, g.page_size,
                   true);
    } while (true);
}

static void *place_at_once(void *unused)
{
    if (g.spread) {
        pin_last();
    }
    for (;;) {
        uint64_t offset = (uffd_next(g.uffd) - (uintptr_t)g.ram) & ~(g.page_size - 1);

        uffd_place(g.uffd, g.ram + offset, g.image + offset, g.page_size, true);
    }
    return unused;
}

/* In the thread that has faulted, which nobody has to wake. */
static void place_in_handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    ask((uintptr_t)info->si_addr);
    if (!receive_and_place(false)) {
        failed("the source has ended");
    }
}

static void start_thread(void *(*run)(void *))
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run, NULL)) {
        failed("pthread_create");
    }
}

/* ---- the vCPU ---- */

static uint64_t *shuffled(void)
{
    uint64_t *order = malloc(g.pages * sizeof(*order));

    if (!order) {
        failed("memory");
    }
    for (uint64_t i = 0; i < g.pages; i++) {
        uint64_t other = mix(i) % (i + 1);

        order[i] = order[other];
        order[other] = i;
    }
    return order;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void touch_all(uint64_t *latency)
{
    uint64_t *order = shuffled();

    for (uint64_t i = 0; i < g.pages; i++) {
        uint64_t word = order[i] * g.page_size / WORD + mix(i) % (g.page_size / WORD);
        uint64_t begin = now_ns(), found = ((volatile uint64_t *)g.ram)[word];

        latency[i] = now_ns() - begin;
        if (found != mix(word + 1)) {
            fprintf(stderr, "page %llu is wrong\n", (unsigned long long)order[i]);
            exit(1);
        }
    }
    free(order);
}

static void report(uint64_t *latency, uint64_t total_ns)
{
    /* The smallest latency that at least this share of the faults did not exceed. */
    uint64_t p50 = (g.pages + 1) / 2 - 1, p99 = (g.pages * 99 + 99) / 100 - 1;

    qsort(latency, g.pages, sizeof(*latency), by_size);
    printf("{\"p50_ns\": %llu, \"p99_ns\": %llu, \"total_ns\": %llu, \"faults\": %llu}\n",
           (unsigned long long)latency[p50], (unsigned long long)latency[p99],
           (unsigned long long)total_ns, (unsigned long long)g.pages);
}

static void prepare(const struct options *o)
{
    uint64_t features = strcmp(o->kind, "sigbus") ? 0 : UFFD_FEATURE_SIGBUS;
    size_t bytes, header = sizeof(struct header);
    int fd;

    g.page_size = o->huge ? 2 << 20 : BASE_PAGE;
    g.pages = o->pages;
    g.spread = o->spread;
    bytes = g.pages * g.page_size;
    g.shared = !strcmp(o->kind, "shm");
    g.image = g.shared ? map_shared(bytes, &fd) : map_image(bytes);
    g.staging = map_private(g.page_size + BASE_PAGE, false) + BASE_PAGE - header;
    memset(g.staging, 0, header + g.page_size);
    make_pipe(g.request);
    make_pipe(g.answer);
    g.ram = map_private(bytes, o->huge);
    g.uffd = uffd_open(features);
    uffd_register(g.uffd, g.ram, bytes, UFFDIO_REGISTER_MODE_MISSING);
}

static void start_destination(const char *layout)
{
    struct sigaction action = {.sa_sigaction = place_in_handler, .sa_flags = SA_SIGINFO};

    if (!strcmp(layout, "qemu")) {
        start_thread(ask_only);
        start_thread(place_only);
    } else if (!strcmp(layout, "one")) {
        start_thread(ask_and_place);
    } else if (!strcmp(layout, "sigbus")) {
        sigaction(SIGBUS, &action, NULL);
    } else if (!strcmp(layout, "shm")) {
        start_thread(place_from_image);
    } else if (!strcmp(layout, "inline")) {
        start_thread(place_at_once);
    } else {
        fprintf(stderr, "%s is no layout\n", layout);
        exit(2);
    }
}

void run_faults(const struct options *o)
{
    bool alone = !strcmp(o->kind, "inline");
    uint64_t *latency = calloc(o->pages, sizeof(*latency)), begin, total;
    pid_t source = 0;

    if (!latency) {
        failed("memory");
    }
    prepare(o);
    if (alone) {
        fill((uint64_t *)g.image, g.pages * g.page_size);
    } else {
        source = start_source();
    }
    start_destination(o->kind);
    if (g.spread) {
        pin_first();
    }
    begin = now_ns();
    touch_all(latency);
    total = now_ns() - begin;
    check((const uint64_t *)g.ram, g.pages * g.page_size);
    report(latency, total);
    if (!alone) {
        close(g.request[1]); /* the source ends, and with its pipe the thread that places */
        wait_for(source);
    }
}
