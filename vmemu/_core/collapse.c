#include "collapse.h"

#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include <time.h>

#include "util.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define REGION_BYTES (UINT64_C(1) << VM_COLLAPSE_SHIFT)
#define QUIET_NS     UINT64_C(500000)
#define DOZE_LEAST   UINT64_C(1000000)
#define DOZE_MOST    UINT64_C(16000000)

enum {
    GIVE_WAY = 8, /* times as long as a collapse took, while the guest faults */
    MOST_TRIES = 4,
    /* States of a region; what is below them is how often it was tried. */
    COLLAPSED = 254,
    GIVEN_UP = 255,
};

/* What one look at all regions came to. */
struct pass {
    uint64_t tried;
    uint64_t left; /* neither collapsed nor given up */
};

/* 1 when told to quit, 0 when the time is over, -1 on failure. */
static int doze(const struct vm_collapse *c, uint64_t ns, struct vm_error *err)
{
    struct pollfd p = {.fd = c->incoming->quit_fd, .events = POLLIN};
    struct timespec wait = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    int rc = ppoll(&p, 1, &wait, NULL);

    if (rc < 0 && errno != EINTR) {
        return vm_fail_errno(err, "poll of the collapsing thread", 0);
    }
    return rc > 0;
}

/*
 * The kernel locks the whole mapping while it copies a region, and a page that is placed there
 * meanwhile has to wait. So a region waits until the guest has not faulted for a moment; a guest
 * that faults all the time is let alone for several times as long as the last one took.
 * As doze.
 */
static int give_way(const struct vm_collapse *c, uint64_t ended_ns, uint64_t took_ns,
                    struct vm_error *err)
{
    const struct vm_incoming *in = c->incoming;
    uint64_t until = ended_ns + GIVE_WAY * took_ns, before,
             now_faults = vm_get(&in->stats.messages);

    do {
        int rc = doze(c, vm_ram_complete(in->ram) ? 0 : QUIET_NS, err);

        if (rc != 0) {
            return rc;
        }
        before = now_faults;
        now_faults = vm_get(&in->stats.messages);
    } while (!vm_ram_complete(in->ram) && now_faults != before && vm_now_ns() < until);
    return 0;
}

static bool is_complete(const struct vm_block *block, uint64_t region)
{
    uint64_t words = (REGION_BYTES >> block->page_shift) / 64;

    for (uint64_t i = region * words; i < (region + 1) * words; i++) {
        if (vm_get_acquire(&block->received[i]) != UINT64_MAX) {
            return false;
        }
    }
    return true;
}

/* 0, or why not as an errno. */
static int collapse(uint64_t address, bool anonymous)
{
    void *at = (void *)(uintptr_t)address;

    /*
     * In anonymous memory zeros are placed as the one page of zeros that all share. Where
     * userfaultfd is registered, the kernel takes that for a hole, and refuses. This gives each of
     * them a page of its own, and changes nothing else.
     */
    if (anonymous && madvise(at, REGION_BYTES, MADV_POPULATE_WRITE) < 0) {
        return errno;
    }
    return madvise(at, REGION_BYTES, MADV_COLLAPSE) < 0 ? errno : 0;
}

static enum vm_collapse_reason reason_of(int errnum)
{
    switch (errnum) {
    case EAGAIN:
        return VM_COLLAPSE_AGAIN;
    case ENOMEM:
        return VM_COLLAPSE_MEMORY;
    case EBUSY:
        return VM_COLLAPSE_BUSY;
    default:
        return VM_COLLAPSE_REFUSED;
    }
}

static void note_failure(struct vm_collapse_block *b, uint64_t region, int errnum)
{
    enum vm_collapse_reason reason = reason_of(errnum);

    b->state[region]++;
    /* Refusals too: it is proven to work here, and the kernel says EINVAL of an image that both
     * ends have mapped when somebody faults on it meanwhile. */
    if (b->state[region] == MOST_TRIES) {
        b->state[region] = GIVEN_UP;
        vm_count(&b->failed[reason], 1);
    }
}

/* Returns how long it took. */
static uint64_t try_region(const struct vm_collapse *c, struct vm_collapse_block *b,
                           uint64_t region)
{
    const struct vm_block *block = &c->incoming->ram->block[b->block];
    uint64_t begin = vm_now_ns(), took_ns;
    int errnum = collapse(block->host + (region << VM_COLLAPSE_SHIFT), b->anonymous);

    took_ns = vm_now_ns() - begin;
    vm_count(&b->took_ns, took_ns);
    if (took_ns > b->longest_ns) {
        vm_set(&b->longest_ns, took_ns);
    }
    if (errnum == 0) {
        b->state[region] = COLLAPSED;
        vm_count(&b->collapsed, 1);
    } else {
        note_failure(b, region, errnum);
    }
    return took_ns;
}

/* As doze. */
static int try_block(const struct vm_collapse *c, struct vm_collapse_block *b, struct pass *p,
                     struct vm_error *err)
{
    const struct vm_block *block = &c->incoming->ram->block[b->block];
    uint64_t ended_ns = 0, took_ns = 0;

    for (uint64_t region = 0; region < b->regions; region++) {
        int rc;

        if (b->state[region] >= COLLAPSED) {
            continue;
        }
        if (is_complete(block, region)) {
            rc = give_way(c, ended_ns, took_ns, err);
            if (rc != 0) {
                return rc;
            }
            took_ns = try_region(c, b, region);
            ended_ns = vm_now_ns();
            p->tried++;
        }
        p->left += b->state[region] < COLLAPSED;
    }
    return 0;
}

int vm_collapse_loop(struct vm_collapse *c, struct vm_error *err)
{
    uint64_t doze_ns = DOZE_LEAST;

    for (;;) {
        struct pass p = {0};
        int rc = 0;

        for (uint32_t i = 0; i < c->count && rc == 0; i++) {
            rc = try_block(c, &c->block[i], &p, err);
        }
        if (rc != 0 || p.left == 0) {
            return rc < 0 ? -1 : 0;
        }
        doze_ns = p.tried ? DOZE_LEAST : doze_ns < DOZE_MOST ? 2 * doze_ns : DOZE_MOST;
        rc = doze(c, doze_ns, err);
        if (rc != 0) {
            return rc < 0 ? -1 : 0;
        }
    }
}
