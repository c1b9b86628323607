#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "uffd_abi.h"
#include "util.h"

static int open_by_device(struct vm_error *err)
{
    int fd, device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    if (device < 0) {
        return vm_fail_errno(err, "open /dev/userfaultfd", 0);
    }
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        vm_fail_errno(err, "USERFAULTFD_IOC_NEW", 0);
    }
    close(device);
    return fd;
}

int vm_uffd_open(int how, struct vm_error *err)
{
    int flags = O_CLOEXEC | O_NONBLOCK;
    long fd;

    if (how == VM_UFFD_DEVICE) {
        return open_by_device(err);
    }
    if (how == VM_UFFD_USER_MODE_ONLY) {
        flags |= UFFD_USER_MODE_ONLY;
    }
    fd = syscall(SYS_userfaultfd, flags);
    return fd < 0 ? vm_fail_errno(err, "userfaultfd", 0) : (int)fd;
}

int vm_uffd_open_kills(int how, struct vm_error *err)
{
    struct vm_error ignored;
    int status;
    /*
     * Not vfork: before Linux 5.16 a signal that dumps core ends all who share the memory. Nor
     * fork: without SIGCHLD at its end nobody else in the process waits for this child, and it is
     * not gone by itself where that signal is ignored.
     */
    pid_t child = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);

    if (child == 0) {
        prctl(PR_SET_DUMPABLE, 0); /* nobody wants that core */
        vm_uffd_open(how, &ignored);
        _exit(0);
    }
    if (child < 0) {
        return vm_fail_errno(err, "clone", 0);
    }
    while (waitpid(child, &status, __WALL) < 0) {
        if (errno != EINTR) {
            return vm_fail_errno(err, "waitpid", 0);
        }
    }
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

int vm_uffd_api(int fd, uint64_t *features, uint64_t *ioctls, struct vm_error *err)
{
    struct uffd_api api = {.api = UFFD_API, .features = *features};

    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        return vm_fail_errno(err, "UFFDIO_API", 0);
    }
    *features = api.features;
    *ioctls = api.ioctls;
    return 0;
}

int vm_uffd_register(int fd, uint64_t start, uint64_t length, uint64_t mode, uint64_t *ioctls,
                     struct vm_error *err)
{
    struct uffd_register reg = {.range = {start, length}, .mode = mode};

    if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0) {
        return vm_fail_errno(err, "UFFDIO_REGISTER", start);
    }
    *ioctls = reg.ioctls;
    return 0;
}

static int range_ioctl(int fd, unsigned long request, const char *name, uint64_t start,
                       uint64_t length, struct vm_error *err)
{
    struct uffd_range range = {start, length};

    return ioctl(fd, request, &range) < 0 ? vm_fail_errno(err, name, start) : 0;
}

int vm_uffd_unregister(int fd, uint64_t start, uint64_t length, struct vm_error *err)
{
    return range_ioctl(fd, UFFDIO_UNREGISTER, "UFFDIO_UNREGISTER", start, length, err);
}

int vm_uffd_wake(int fd, uint64_t start, uint64_t length, struct vm_error *err)
{
    return range_ioctl(fd, UFFDIO_WAKE, "UFFDIO_WAKE", start, length, err);
}

/* A run that is being placed; all three ioctls report progress in the same way. */
struct placing {
    int fd;
    unsigned long request;
    uint64_t destination;
    const char *source; /* of UFFDIO_COPY alone */
    uint64_t left;
    uint64_t page_size;
    struct vm_place_stats *stats;
    bool fill_holes; /* UFFDIO_CONTINUE where the page cache has the page, else UFFDIO_ZEROPAGE */
};

/*
 * One ioctl. Returns the bytes that were placed (0 and more), or a negative errno. The kernel says
 * both in the signed field; when it stopped half-way the ioctl itself fails with EAGAIN although
 * progress was made.
 */
static int64_t place_once(const struct placing *run)
{
    struct uffd_range range = {run->destination, run->left};
    int64_t done;
    int rc;

    if (run->request == UFFDIO_COPY) {
        struct uffd_copy copy = {
            .dst = run->destination, .src = (uintptr_t)run->source, .len = run->left};

        rc = ioctl(run->fd, UFFDIO_COPY, &copy);
        done = copy.copy;
    } else if (run->request == UFFDIO_CONTINUE) {
        struct uffd_continue there = {.range = range};

        rc = ioctl(run->fd, UFFDIO_CONTINUE, &there);
        done = there.mapped;
    } else {
        struct uffd_zeropage zero = {.range = range};

        rc = ioctl(run->fd, UFFDIO_ZEROPAGE, &zero);
        done = zero.zeropage;
    }
    if (rc == 0) {
        return (int64_t)run->left;
    }
    /* Refused before it began: the field was not written. */
    return done == 0 ? -errno : done;
}

static void advance(struct placing *run, uint64_t bytes)
{
    run->destination += bytes;
    run->left -= bytes;
    if (run->source) {
        run->source += bytes;
    }
}

/*
 * Whether the other of the two would do: CONTINUE says EFAULT of a hole, and ZEROPAGE EEXIST of a
 * page that the page cache has. Of one that is mapped already CONTINUE says EEXIST too, so that the
 * two never go on for ever.
 */
static bool other_request(struct placing *run, int64_t done)
{
    if (run->fill_holes && done == -EFAULT && run->request == UFFDIO_CONTINUE) {
        run->request = UFFDIO_ZEROPAGE;
        return true;
    }
    if (run->fill_holes && done == -EEXIST && run->request == UFFDIO_ZEROPAGE) {
        run->request = UFFDIO_CONTINUE;
        return true;
    }
    return false;
}

/*
 * Whether the page is there, asked after ENOMEM. Two channels may bring the same page, and the
 * kernel takes memory for it before it sees that there is one, which a tmpfs that is no larger than
 * what is to lie in it has not. CONTINUE takes none; it says EFAULT of a hole.
 */
static bool is_there(const struct placing *run)
{
    struct uffd_continue there = {.range = {run->destination, run->page_size}};

    return ioctl(run->fd, UFFDIO_CONTINUE, &there) == 0 || errno == EEXIST;
}

/* That memory may also be what another page lacks, for as long as the other thread has it: it is
 * waited for, a tenth of a second, before it counts as missing. */
static bool memory_may_come(unsigned tries)
{
    struct timespec moment = {0, 500 * 1000};

    nanosleep(&moment, NULL);
    return tries < 200;
}

static int place(struct placing run, const char *name, struct vm_error *err)
{
    unsigned tries = 0;

    while (run.left > 0) {
        int64_t done = place_once(&run);

        if (done == -ENOMEM && is_there(&run)) {
            done = -EEXIST;
        }
        if (done > 0) {
            run.stats->partial += (uint64_t)done < run.left;
            advance(&run, (uint64_t)done);
        } else if (other_request(&run, done)) {
            continue;
        } else if (done == -EEXIST) {
            /* Somebody else placed it; a waiter that queued in between must still be woken. */
            run.stats->exists++;
            if (vm_uffd_wake(run.fd, run.destination, run.page_size, err) < 0) {
                return -1;
            }
            advance(&run, run.page_size);
        } else if (done == -EAGAIN) {
            run.stats->again++;
            sched_yield(); /* whoever changes the mappings needs the CPU to get done */
        } else if (done == -ENOENT || done == -ESRCH) {
            return 1;
        } else if (done != -ENOMEM || !memory_may_come(tries++)) {
            errno = (int)-done;
            return vm_fail_errno(err, name, run.destination);
        }
    }
    return 0;
}

int vm_uffd_copy(int fd, uint64_t destination, const void *source, uint64_t length,
                 uint64_t page_size, struct vm_place_stats *stats, struct vm_error *err)
{
    struct placing run = {fd, UFFDIO_COPY, destination, source, length, page_size, stats, false};

    return place(run, "UFFDIO_COPY", err);
}

int vm_uffd_zeropage(int fd, uint64_t destination, uint64_t length, uint64_t page_size,
                     struct vm_place_stats *stats, struct vm_error *err)
{
    struct placing run = {fd, UFFDIO_ZEROPAGE, destination, NULL, length, page_size, stats, false};

    return place(run, "UFFDIO_ZEROPAGE", err);
}

int vm_uffd_continue(int fd, uint64_t destination, uint64_t length, uint64_t page_size,
                     struct vm_place_stats *stats, struct vm_error *err)
{
    struct placing run = {fd, UFFDIO_CONTINUE, destination, NULL, length, page_size, stats, false};

    return place(run, "UFFDIO_CONTINUE", err);
}

int vm_uffd_map_there(int fd, uint64_t destination, uint64_t length, uint64_t page_size,
                      struct vm_place_stats *stats, struct vm_error *err)
{
    struct placing run = {fd, UFFDIO_CONTINUE, destination, NULL, length, page_size, stats, true};

    return place(run, "UFFDIO_CONTINUE", err);
}

int vm_uffd_protect(int fd, uint64_t start, uint64_t length, bool protect, struct vm_error *err)
{
    struct uffd_writeprotect wp = {{start, length}, protect ? UFFD_WRITEPROTECT_WP : 0};

    while (ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0) {
        if (errno != EAGAIN) {
            return vm_fail_errno(err, "UFFDIO_WRITEPROTECT", start);
        }
        sched_yield(); /* the mappings are changing; whoever does it needs the CPU to get done */
    }
    return 0;
}
