#include "wakeup.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "util.h"

struct pair {
    uint32_t rounds, stop;
    uint64_t pause_ns;
    uint64_t *took_ns;
    uint64_t begin_ns; /* when the sleeper began to be woken */
    int wake_fd, back_fd;
};

static void *sleeper(void *arg)
{
    struct pair *pair = arg;
    eventfd_t value;

    for (uint32_t i = 0; i < pair->rounds; i++) {
        eventfd_read(pair->wake_fd, &value);
        if (vm_get(&pair->stop)) {
            break;
        }
        pair->took_ns[i] = vm_now_ns() - vm_get_acquire(&pair->begin_ns);
        eventfd_write(pair->back_fd, 1);
    }
    return NULL;
}

static void *waker(void *arg)
{
    struct pair *pair = arg;
    struct timespec pause = {.tv_nsec = (long)pair->pause_ns};
    eventfd_t value;

    for (uint32_t i = 0; i < pair->rounds; i++) {
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        vm_set_release(&pair->begin_ns, vm_now_ns());
        eventfd_write(pair->wake_fd, 1);
        eventfd_read(pair->back_fd, &value);
    }
    return NULL;
}

static int pin(pthread_attr_t *attr, int cpu)
{
    size_t size = CPU_ALLOC_SIZE(cpu + 1); /* cpu_set_t ends at 1,024 */
    cpu_set_t *set = CPU_ALLOC(cpu + 1);
    int rc;

    if (!set) {
        return ENOMEM;
    }
    CPU_ZERO_S(size, set);
    CPU_SET_S(cpu, size, set);
    rc = pthread_attr_setaffinity_np(attr, size, set);
    CPU_FREE(set);
    return rc;
}

static int start(pthread_t *thread, int cpu, void *(*function)(void *), struct pair *pair,
                 struct vm_error *err)
{
    pthread_attr_t attr;

    errno = pthread_attr_init(&attr);
    if (errno == 0) {
        errno = pin(&attr, cpu);
        if (errno == 0) {
            errno = pthread_create(thread, &attr, function, pair);
        }
        pthread_attr_destroy(&attr);
    }
    return errno ? vm_fail_errno(err, "a thread on a CPU of its own", 0) : 0;
}

static int run(struct pair *pair, int waker_cpu, int sleeper_cpu, struct vm_error *err)
{
    pthread_t sleeping, waking;
    int rc;

    if (start(&sleeping, sleeper_cpu, sleeper, pair, err) < 0) {
        return -1;
    }
    rc = start(&waking, waker_cpu, waker, pair, err);
    if (rc < 0) {
        vm_set(&pair->stop, 1);
        eventfd_write(pair->wake_fd, 1);
    } else {
        pthread_join(waking, NULL);
    }
    pthread_join(sleeping, NULL);
    return rc;
}

int vm_wakeup(int waker_cpu, int sleeper_cpu, uint32_t rounds, uint64_t pause_ns, uint64_t *took_ns,
              struct vm_error *err)
{
    struct pair pair = {.rounds = rounds,
                        .pause_ns = pause_ns,
                        .took_ns = took_ns,
                        .wake_fd = eventfd(0, EFD_CLOEXEC),
                        .back_fd = eventfd(0, EFD_CLOEXEC)};
    sigset_t all, before;
    int rc = -1;

    if (pair.wake_fd < 0 || pair.back_fd < 0) {
        vm_fail_errno(err, "eventfd", 0);
    } else {
        /* The threads take no signals: one would cut a read short. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        rc = run(&pair, waker_cpu, sleeper_cpu, err);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (pair.wake_fd >= 0) {
        close(pair.wake_fd);
    }
    if (pair.back_fd >= 0) {
        close(pair.back_fd);
    }
    return rc;
}
