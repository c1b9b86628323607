/*
 * The thread that touches must end whatever the kernel does, as it is joined:
 *
 *  - It goes on when its page is resolved, and touches the next one. At its end it rings.
 *  - A page that does not fault lets it go on at once, so it rings early: no message will come.
 *  - When anything fails, the range is mapped over with ordinary memory before its waiters are
 * woken. Unregistering alone would let it touch the real page, and a hugepage that a cgroup or a
 * cpuset refuses is a SIGBUS. Whoever touches during this either is queued before the mapping
 * changes and woken after it, or finds the new memory.
 *  - A thread that is stopped and continued by a signal gives up its wait and faults again: a page
 * may have more than one message.
 */
#include "probe.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mapping.h"
#include "uffd.h"
#include "uffd_abi.h"
#include "util.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { STAMPS = 8 }; /* places in each page that are looked at, the first of them is touched */

struct probing {
    struct vm_probe *p;
    void *source; /* a page to copy from, of VM_PROBE_MISSING alone */
    int done_fd;
    uint32_t abandoned; /* the memory was replaced: touch no more */
    uint64_t served;    /* pages [0, served) were resolved at least once */
    uint64_t touched;   /* pages [0, touched) went on with the right content */
    bool wrong;         /* page number touched went on with something else */
    uint64_t expected, found;
};

/* ---- what the pages hold ---- */

static uint64_t stamp(uint64_t page, unsigned place)
{
    return UINT64_C(0x766d656d75000001) + page * STAMPS + place;
}

static volatile uint64_t *place_in(uint64_t page_address, uint64_t page_size, unsigned place)
{
    return (volatile uint64_t *)(uintptr_t)(page_address + place * (page_size / STAMPS));
}

static void stamp_page(uint64_t page_address, uint64_t page_size, uint64_t page)
{
    for (unsigned i = 0; i < STAMPS; i++) {
        *place_in(page_address, page_size, i) = stamp(page, i);
    }
}

void vm_probe_stamp(uint64_t address, uint64_t page_size, uint64_t pages)
{
    for (uint64_t page = 0; page < pages; page++) {
        stamp_page(address + page * page_size, page_size, page);
    }
}

int vm_probe_populate(uint64_t address, uint64_t length, struct vm_error *err)
{
    uint64_t step = (uint64_t)sysconf(_SC_PAGESIZE);

    if (madvise((void *)(uintptr_t)address, length, MADV_POPULATE_WRITE) == 0) {
        return 0;
    }
    if (errno != EINVAL) {
        return vm_fail_errno(err, "MADV_POPULATE_WRITE", address);
    }
    for (uint64_t at = 0; at < length; at += step) { /* a kernel before 5.14 */
        *(volatile uint8_t *)(uintptr_t)(address + at) = 0;
    }
    return 0;
}

/*
 * A page to copy from. All of it is read, which maps zeros: UFFDIO_COPY of a page of 1 GiB fails
 * with ENOMEM where its source is not mapped. With transparent hugepages of zeros, 512 faults do
 * instead of 262,144.
 */
static int map_source(struct probing *t, struct vm_error *err)
{
    uint64_t size = t->p->page_size, step = (uint64_t)sysconf(_SC_PAGESIZE);
    void *source = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (source == MAP_FAILED) {
        return vm_fail_errno(err, "mmap of a page to copy from", 0);
    }
    t->source = source;
    madvise(source, size, MADV_HUGEPAGE); /* a kernel without them says EINVAL */
    for (uint64_t at = 0; at < size; at += step) {
        (void)*(volatile uint8_t *)((char *)source + at);
    }
    return 0;
}

/* ---- the thread that touches ---- */

static bool content_is_right(struct probing *t, uint64_t page)
{
    const struct vm_probe *p = t->p;
    uint64_t page_address = p->address + page * p->page_size;

    for (unsigned i = 0; i < STAMPS; i++) {
        bool written = i == 0 && p->kind == VM_PROBE_WRITE_PROTECT;

        t->expected = written ? ~stamp(page, i) : stamp(page, i);
        t->found = *place_in(page_address, p->page_size, i);
        if (t->found != t->expected) {
            return false;
        }
    }
    return true;
}

static uint64_t touch_page(const struct vm_probe *p, uint64_t page)
{
    volatile uint64_t *place = place_in(p->address + page * p->page_size, p->page_size, 0);
    uint64_t begin = vm_now_ns();

    if (p->kind == VM_PROBE_WRITE_PROTECT) {
        *place = ~stamp(page, 0);
    } else {
        (void)*place;
    }
    return vm_now_ns() - begin;
}

static void *touch_pages(void *arg)
{
    struct probing *t = arg;

    for (uint64_t page = 0; page < t->p->pages && !t->wrong; page++) {
        t->p->took_ns[page] = touch_page(t->p, page);
        if (vm_get_acquire(&t->abandoned)) {
            break;
        }
        t->wrong = !content_is_right(t, page);
        vm_set(&t->touched, page + !t->wrong);
    }
    eventfd_write(t->done_fd, 1);
    return NULL;
}

/* Without signals: one would end its wait for the page, and be a second message. */
static int start_touching(struct probing *t, pthread_t *thread, struct vm_error *err)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    errno = pthread_create(thread, NULL, touch_pages, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return errno ? vm_fail_errno(err, "pthread_create", 0) : 0;
}

/* ---- serving it ---- */

static int fail(struct probing *t, enum vm_probe_outcome outcome)
{
    t->p->outcome = outcome;
    return -1;
}

static const char *kind_of(uint64_t flags)
{
    if (flags & UFFD_PAGEFAULT_FLAG_WP) {
        return "write-protect";
    }
    return flags & UFFD_PAGEFAULT_FLAG_MINOR ? "minor" : "missing";
}

static const char *kind_wanted(const struct vm_probe *p)
{
    static const char *const names[] = {"missing", "minor", "write-protect"};

    return names[p->kind];
}

static int resolve(struct probing *t, uint64_t page, struct vm_error *err)
{
    struct vm_probe *p = t->p;
    struct vm_place_stats stats = {0};
    uint64_t at = p->address + page * p->page_size, size = p->page_size;
    int rc;

    switch (p->kind) {
    case VM_PROBE_MISSING:
        stamp_page((uintptr_t)t->source, size, page);
        rc = vm_uffd_copy(p->uffd, at, t->source, size, size, &stats, err);
        break;
    case VM_PROBE_MINOR:
        rc = vm_uffd_continue(p->uffd, at, size, size, &stats, err);
        break;
    default:
        rc = vm_uffd_protect(p->uffd, at, size, false, err);
    }
    return rc > 0 ? vm_fail_because(err, "serving a fault", at, "the mapping is gone") : rc;
}

static int serve_message(struct probing *t, const struct uffd_msg *m, struct vm_error *err)
{
    const struct vm_probe *p = t->p;
    uint64_t address = m->arg.pagefault.address, flags = m->arg.pagefault.flags;
    uint64_t page = (address - p->address) / p->page_size;

    if (m->event != UFFD_EVENT_PAGEFAULT || page > t->served || page >= p->pages) {
        vm_fail_because(err, "fault message", address,
                        "event %#x came of another page than page %" PRIu64 ", which was touched",
                        m->event, t->served);
        return fail(t, VM_PROBE_OTHER_FAULT);
    }
    if (strcmp(kind_of(flags), kind_wanted(p)) != 0) {
        vm_fail_because(err, "fault message", address, "a %s fault came, where a %s one was due",
                        kind_of(flags), kind_wanted(p));
        return fail(t, VM_PROBE_OTHER_FAULT);
    }
    if (resolve(t, page, err) < 0) {
        return -1;
    }
    t->served += page == t->served;
    return 0;
}

static int nothing_came(struct probing *t, struct vm_error *err)
{
    vm_fail_because(err, "fault message", t->p->address + t->served * t->p->page_size,
                    "none came, though page %" PRIu64 " of %" PRIu64 " was touched", t->served,
                    t->p->pages);
    return fail(t, VM_PROBE_SILENT);
}

static int too_late(struct probing *t, struct vm_error *err)
{
    uint64_t page = vm_get(&t->touched);

    if (page >= t->served) {
        return nothing_came(t, err);
    }
    vm_fail_because(err, "served page", t->p->address + page * t->p->page_size,
                    "whoever touched page %" PRIu64 " of %" PRIu64 " did not go on", page,
                    t->p->pages);
    return fail(t, VM_PROBE_STUCK);
}

/* What there is to read: 1 with a message, 0 when the toucher was quicker, or -1. */
static int read_message(const struct probing *t, struct uffd_msg *m, struct vm_error *err)
{
    ssize_t got = read(t->p->uffd, m, sizeof(*m));

    if (got == (ssize_t)sizeof(*m)) {
        return 1;
    }
    if (got < 0 && errno != EAGAIN && errno != EINTR) {
        return vm_fail_errno(err, "read of userfaultfd", 0);
    }
    return 0; /* the waiter was woken in between */
}

static int serve(struct probing *t, struct vm_error *err)
{
    struct pollfd polled[2] = {{.fd = t->p->uffd, .events = POLLIN},
                               {.fd = t->done_fd, .events = POLLIN}};
    uint64_t deadline = vm_now_ns() + t->p->wait_ns, before = 0;

    for (;;) {
        uint64_t now = vm_now_ns();
        struct uffd_msg m;
        int rc;

        if (t->served != before) {
            before = t->served;
            deadline = now + t->p->wait_ns;
        }
        if (now >= deadline) {
            return too_late(t, err);
        }
        rc = poll(polled, 2, (int)((deadline - now + 999999) / 1000000));
        if (rc < 0 && errno != EINTR) {
            return vm_fail_errno(err, "poll of userfaultfd", 0);
        }
        if (rc <= 0) {
            continue;
        }
        if (polled[1].revents) {
            return 0;
        }
        rc = read_message(t, &m, err);
        if (rc < 0 || (rc > 0 && serve_message(t, &m, err) < 0)) {
            return -1;
        }
    }
}

/* ---- the whole ---- */

static void let_go(struct probing *t)
{
    const struct vm_probe *p = t->p;
    uint64_t length = p->pages * p->page_size;
    struct vm_error ignored;

    vm_set_release(&t->abandoned, 1);
    if (vm_cover(p->address, length, &ignored) < 0) {
        vm_uffd_unregister(p->uffd, p->address, length, &ignored);
    }
    vm_uffd_wake(p->uffd, p->address, length, &ignored);
}

static int judge(struct probing *t, struct vm_error *err)
{
    const struct vm_probe *p = t->p;

    /* Also of a page beyond one with wrong data: what is there came from elsewhere. */
    if (t->served < t->touched + t->wrong) {
        return nothing_came(t, err);
    }
    if (t->wrong) {
        vm_fail_because(err, "served page", p->address + t->touched * p->page_size,
                        "it has %#" PRIx64 " where %#" PRIx64 " was due", t->found, t->expected);
        return fail(t, VM_PROBE_WRONG_DATA);
    }
    return 0;
}

static int touch_and_serve(struct probing *t, struct vm_error *err)
{
    pthread_t thread;
    int rc;

    if (start_touching(t, &thread, err) < 0) {
        return -1;
    }
    rc = serve(t, err);
    if (rc < 0) {
        let_go(t);
    }
    pthread_join(thread, NULL);
    return rc < 0 ? rc : judge(t, err);
}

static int refused(struct probing *t, uint64_t ioctls, struct vm_error *err)
{
    static const struct {
        const char *name;
        int nr;
    } needed[] = {{"UFFDIO_COPY", UFFD_NR_COPY},
                  {"UFFDIO_CONTINUE", UFFD_NR_CONTINUE},
                  {"UFFDIO_WRITEPROTECT", UFFD_NR_WRITEPROTECT}};

    if (ioctls >> needed[t->p->kind].nr & 1) {
        return 0;
    }
    vm_fail_because(err, "UFFDIO_REGISTER", t->p->address, "there is no %s on this memory",
                    needed[t->p->kind].name);
    return fail(t, VM_PROBE_REFUSED);
}

static int probe_registered(struct probing *t, uint64_t ioctls, struct vm_error *err)
{
    const struct vm_probe *p = t->p;

    if (refused(t, ioctls, err) < 0) {
        return -1;
    }
    if (p->kind == VM_PROBE_WRITE_PROTECT &&
        vm_uffd_protect(p->uffd, p->address, p->pages * p->page_size, true, err) < 0) {
        return -1;
    }
    return touch_and_serve(t, err);
}

static int register_and_probe(struct probing *t, struct vm_error *err)
{
    static const uint64_t modes[] = {UFFD_REGISTER_MODE_MISSING, UFFD_REGISTER_MODE_MINOR,
                                     UFFD_REGISTER_MODE_WP};
    const struct vm_probe *p = t->p;
    uint64_t ioctls, length = p->pages * p->page_size;
    struct vm_error ignored;
    int rc;

    if (vm_uffd_register(p->uffd, p->address, length, modes[p->kind], &ioctls, err) < 0) {
        return fail(t, VM_PROBE_REFUSED);
    }
    rc = probe_registered(t, ioctls, err);
    if (vm_uffd_unregister(p->uffd, p->address, length, rc < 0 ? &ignored : err) < 0) {
        return -1;
    }
    return rc;
}

int vm_probe(struct vm_probe *p, struct vm_error *err)
{
    struct probing t = {.p = p, .done_fd = eventfd(0, EFD_CLOEXEC)};
    int rc = 0;

    p->outcome = VM_PROBE_FAILED;
    if (t.done_fd < 0) {
        return vm_fail_errno(err, "eventfd", 0);
    }
    if (p->kind == VM_PROBE_MISSING) {
        rc = map_source(&t, err);
    }
    if (rc == 0) {
        rc = register_and_probe(&t, err);
    }
    if (t.source) {
        munmap(t.source, p->page_size);
    }
    close(t.done_fd);
    if (rc == 0) {
        p->outcome = VM_PROBE_WORKS;
    }
    return rc;
}
