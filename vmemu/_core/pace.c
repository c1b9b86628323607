#include "pace.h"

#include <sys/prctl.h>
#include <time.h>

#include "replay.h"
#include "util.h"

/*
 * A look at the clock takes some 25 ns, ten times an access. So one look serves all accesses that
 * are due by then, up to a number that takes a fraction of a microsecond unless one of them has to
 * wait for its page; then there is another look right behind it.
 */
enum { ACCESSES_A_LOOK = 128 };

/* A sleep is this long at most, so that a vCPU that is told to stop does so soon. */
static const double LONGEST_SLEEP_NS = 10e6;

static void look(struct vm_pacer *p)
{
    p->now_ns = (double)(vm_now_ns() - p->start_ns);
    p->credit = ACCESSES_A_LOOK;
}

/*
 * Sleep towards the time at which something is due. It is never waited for busily, however near:
 * the CPU is left to whoever fetches pages. To fall asleep and to be woken takes longer than many a
 * time between two accesses; those that are due by then follow at once, and their lag says so.
 */
static void sleep_towards(const struct vm_pacer *p, double due_ns)
{
    double left_ns = due_ns - p->now_ns;
    uint64_t until_ns = vm_now_ns();
    struct timespec until;

    until_ns += (uint64_t)(left_ns < LONGEST_SLEEP_NS ? left_ns : LONGEST_SLEEP_NS) + 1;
    until.tv_sec = (time_t)(until_ns / 1000000000u);
    until.tv_nsec = (long)(until_ns % 1000000000u);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static double due_ns_of(const struct vm_pacer *p, const struct vm_slice *s, uint32_t i,
                        uint64_t position)
{
    uint64_t due = p->pace->kind == VM_PACE_RECORDED ? vm_time_of(s, i) : position + i;

    return (double)(int64_t)(due - p->zero) * p->pace->unit_ns;
}

void vm_pacer_start(struct vm_pacer *p, struct vm_vcpu *v, struct vm_pace *pace)
{
    uint64_t standing = 0;

    *p = (struct vm_pacer){.v = v, .pace = pace, .zero = v->begin, .start_ns = vm_now_ns()};
    /* The kernel may wake a thread 50 us late, to wake several at once, unless the thread says how
     * much it bears. */
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    if (pace->kind == VM_PACE_RECORDED) {
        p->zero = pace->zero;
        if (!__atomic_compare_exchange_n(&pace->start_ns, &standing, p->start_ns, false,
                                         __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            p->start_ns = standing; /* another vCPU was first: the clock runs */
        }
    }
}

uint32_t vm_pacer_wait(struct vm_pacer *p, const struct vm_slice *s, uint64_t position)
{
    double first_ns = due_ns_of(p, s, 0, position);
    uint32_t most, due = 1;

    if (p->credit == 0 || first_ns > p->now_ns) {
        look(p);
    }
    while (first_ns > p->now_ns) {
        if (vm_get(&p->v->stop)) {
            return 0;
        }
        sleep_towards(p, first_ns);
        look(p);
    }
    most = s->count < p->credit ? s->count : p->credit;
    while (due < most && due_ns_of(p, s, due, position) <= p->now_ns) {
        due++;
    }
    return due;
}

/* Add the lags of some accesses to the figures: their mean, and the longest. */
static void add_lags(struct vm_pacer *p, uint32_t count, double mean_ns, double longest_ns)
{
    uint64_t paced = p->v->paced + count;

    vm_set(&p->v->paced, paced);
    p->mean_ns += (mean_ns - p->mean_ns) * (double)count / (double)paced;
    vm_set(&p->v->lag_mean_ns, (uint64_t)p->mean_ns);
    if (longest_ns > (double)vm_get(&p->v->lag_max_ns)) {
        vm_set(&p->v->lag_max_ns, (uint64_t)longest_ns);
    }
}

void vm_pacer_note(struct vm_pacer *p, const struct vm_slice *s, uint64_t position, uint32_t done,
                   bool delayed)
{
    uint32_t at_once = done - delayed; /* at the time of the last look */
    double last_due_ns = due_ns_of(p, s, done - 1, position);
    double sum_ns = 0, longest_ns = 0, lag_ns;

    p->credit -= done;
    for (uint32_t i = 0; i < at_once; i++) {
        lag_ns = p->now_ns - due_ns_of(p, s, i, position);
        sum_ns += lag_ns;
        longest_ns = lag_ns > longest_ns ? lag_ns : longest_ns;
    }
    if (at_once > 0) {
        add_lags(p, at_once, sum_ns / at_once, longest_ns);
    }
    if (delayed) {
        look(p);
        lag_ns = p->now_ns - last_due_ns;
        add_lags(p, 1, lag_ns, lag_ns);
    }
    vm_set(&p->v->lag_end_ns, (uint64_t)(p->now_ns - last_due_ns));
}
