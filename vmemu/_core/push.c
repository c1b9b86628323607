/* The background push: everything that nobody has asked for, in the order of push_order.c. */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "scheduling.h"
#include "source_parts.h"
#include "util.h"

static uint32_t run_limit(const struct vm_image *image)
{
    /* Where nothing is copied, a run is placed in the time that a fraction of it takes elsewhere.
     */
    uint32_t bytes = image->in_place ? 4 * VM_RUN_BYTES : VM_RUN_BYTES;
    uint32_t pages = bytes >> image->page_shift;

    return pages ? pages : 1;
}

/* Claim the page and those behind it, before end, that are like it, zeros or not, while they are
 * free. */
static uint32_t claim_run(struct vm_image *image, uint64_t first, uint64_t end, bool *zero)
{
    uint32_t pages = 1, limit = run_limit(image);

    if (vm_bit_test_and_set(image->sent, first)) {
        return 0; /* a request was faster */
    }
    *zero = vm_page_is_zero(image, first);
    /* Looked at first: reading what was sent, and perhaps released, would be for nothing. */
    while (pages < limit && first + pages < end && !vm_bit_test(image->sent, first + pages) &&
           vm_page_is_zero(image, first + pages) == *zero &&
           !vm_bit_test_and_set(image->sent, first + pages)) {
        pages++;
    }
    return pages;
}

int vm_push_one_run(struct vm_source *s, struct vm_error *err)
{
    struct vm_run run = {.flags = 0};
    uint64_t end;

    if (!vm_push_next(s, &run.block, &run.first, &end)) {
        return 0;
    }
    run.pages = claim_run(&s->image[run.block], run.first, end, &run.zero);
    vm_push_passed(s, run.block, run.first + run.pages);
    if (run.pages && vm_source_send_run(s, s->main_fd, &run, err) < 0) {
        return -1;
    }
    vm_limiter_charge(&s->limiter, vm_now_ns(),
                      run.zero ? 0 : (uint64_t)run.pages << s->image[run.block].page_shift);
    return 1;
}

int vm_push_complete(struct vm_source *s, struct vm_error *err)
{
    struct vm_header h = {.type = VM_MSG_COMPLETE};

    if (s->withholds) {
        return 0;
    }
    vm_event(s->log, VM_EVENT_POSTCOPY_END, 0, 0, 0);
    return vm_source_send(s, s->main_fd, &h, NULL, err);
}

/* Pages carried along with answers take their share of the bandwidth, and never wait for it: the
 * push makes up for them. They are added up, as whoever answers may be another thread. */
uint64_t vm_push_delay(struct vm_source *s)
{
    uint64_t now_ns = vm_now_ns();

    vm_limiter_charge(&s->limiter, now_ns,
                      __atomic_exchange_n(&s->limiter_owed, 0, __ATOMIC_RELAXED));
    return vm_limiter_delay(&s->limiter, now_ns);
}

/* Wait for the limiter to let the next bytes go; true when it is over meanwhile. */
static bool held_back(struct vm_source *s)
{
    uint64_t delay = vm_push_delay(s);
    struct timespec wait = {(time_t)(delay / 1000000000u), (long)(delay % 1000000000u)};
    struct pollfd over = {.fd = s->push_fd, .events = POLLIN};

    /* Rung at the end, after stop was set; unless that ring was read with the one of the begin. */
    if (delay && !vm_get_acquire(&s->stop)) {
        ppoll(&over, 1, &wait, NULL);
    }
    return vm_get_acquire(&s->stop);
}

int vm_source_push(struct vm_source *s, struct vm_error *err)
{
    eventfd_t begin;
    int rc = 1;

    vm_schedule_bulk();
    while (read(s->push_fd, &begin, sizeof(begin)) < 0) {
        if (errno != EINTR) {
            return vm_fail_errno(err, "wait for the push to begin", 0);
        }
    }
    vm_source_stay_close(s, true);
    while (rc == 1 && !held_back(s)) {
        rc = vm_push_one_run(s, err);
    }
    vm_source_stay_close(s, false);
    /* Stopped half-way, it is not complete: whoever stopped it says what is to be said. */
    return rc == 0 ? vm_push_complete(s, err) : rc < 0 ? -1 : 0;
}
