/*
 * The handler runs where an access of the replay stands still, which is in the middle of nothing
 * else: no lock is held and no structure is half changed. So a server may do what any code may do,
 * and not only what is safe at any moment. A SIGBUS somewhere else is one at an address that no
 * server knows.
 */
#include "sigbus.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>

#include "util.h"

/* Initial-exec: the handler reads them in threads that never had them, and other models may
 * allocate at the first look. */
static _Thread_local __attribute__((tls_model("initial-exec"))) vm_sigbus_server own_server;
static _Thread_local __attribute__((tls_model("initial-exec"))) void *own_context;

static pthread_mutex_t users_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;
static struct sigaction before; /* who handled SIGBUS before the first user */
static uint32_t reporting;      /* it is told of a crash: who comes to the handler stays there */

enum { LAST_FAULTS_NS = 10000000 }; /* in which threads that miss pages come to the handler */

/* A touch is made again after the handler, without one, and then the kernel ends the process with
 * its address; a signal that somebody sent comes only once. */
static void die_of_it(int number, const siginfo_t *info)
{
    struct sigaction none = {.sa_handler = SIG_DFL};

    sigaction(SIGBUS, &none, NULL);
    if (info->si_code <= 0) {
        raise(number);
    }
}

static void call_earlier(int number, siginfo_t *info, void *state)
{
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, state);
    } else {
        before.sa_handler(number);
    }
}

static void pass_on(int number, siginfo_t *info, void *state)
{
    bool sent = info->si_code <= 0, called = before.sa_flags & SA_SIGINFO;

    if (!called && before.sa_handler == SIG_IGN && sent) {
        return;
    }
    if (!called && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)) {
        die_of_it(number, info);
        return;
    }
    /* One that reports a crash gives SIGBUS back to the kernel first, and a thread that misses a
     * page then would end the process in the middle of the report. */
    if (!sent) {
        vm_set_release(&reporting, 1);
        nanosleep(&(struct timespec){.tv_nsec = LAST_FAULTS_NS}, NULL);
    }
    call_earlier(number, info, state);
    vm_set_release(&reporting, 0);
}

static void let_report(void)
{
    while (vm_get_acquire(&reporting)) {
        nanosleep(&(struct timespec){.tv_nsec = LAST_FAULTS_NS}, NULL);
    }
}

static void handle(int number, siginfo_t *info, void *state)
{
    int saved = errno;

    /* Memory that has failed (BUS_MCEERR_AR) is no page that could come. */
    if (info->si_code != BUS_ADRERR || !own_server ||
        !own_server(own_context, (uint64_t)(uintptr_t)info->si_addr)) {
        pass_on(number, info, state);
    } else {
        let_report();
    }
    errno = saved;
}

int vm_sigbus_install(struct vm_error *err)
{
    struct sigaction ours = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    int rc = 0;

    sigemptyset(&ours.sa_mask);
    pthread_mutex_lock(&users_lock);
    /* Two calls: a foreign SIGBUS in between must find in `before` what it needs. */
    if (users == 0 &&
        (sigaction(SIGBUS, NULL, &before) < 0 || sigaction(SIGBUS, &ours, NULL) < 0)) {
        rc = vm_fail_errno(err, "sigaction of SIGBUS", 0);
    }
    users += rc == 0;
    pthread_mutex_unlock(&users_lock);
    return rc;
}

void vm_sigbus_remove(void)
{
    struct sigaction now;

    pthread_mutex_lock(&users_lock);
    users--;
    /* Whoever took SIGBUS over meanwhile keeps it, and may still pass on to us. */
    if (users == 0 && sigaction(SIGBUS, NULL, &now) == 0 && now.sa_flags & SA_SIGINFO &&
        now.sa_sigaction == handle) {
        sigaction(SIGBUS, &before, NULL);
    }
    pthread_mutex_unlock(&users_lock);
}

void vm_sigbus_serve(vm_sigbus_server server, void *context)
{
    own_context = context;
    own_server = server;
}
