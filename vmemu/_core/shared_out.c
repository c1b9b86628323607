/*
 * The source with channel shm: an image lies in a file that the destination has mapped too, so that
 * a message only says which pages may be taken.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "access.h"
#include "source_parts.h"
#include "util.h"

int vm_source_share(struct vm_source *s, uint32_t index, int fd, bool in_place,
                    struct vm_error *err)
{
    struct vm_image *image = &s->image[index];
    void *data =
        mmap(image->data, image->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

    if (data == MAP_FAILED) {
        return vm_fail_errno(err, "mmap of the shared image", (uintptr_t)image->data);
    }
    if (!in_place) {
        madvise(data, image->size, MADV_HUGEPAGE); /* nothing depends on it */
    }
    image->shared = true;
    image->in_place = in_place;
    s->shares = true;
    return 0;
}

static void note_zeros(const struct vm_image *image, uint64_t from, uint64_t to, bool hole)
{
    for (uint64_t page = from >> VM_PAGE_SHIFT; page < to >> VM_PAGE_SHIFT; page++) {
        if (hole || vm_bytes_are_zero(image->data + (page << VM_PAGE_SHIFT), VM_PAGE_SIZE)) {
            vm_bit_test_and_set(image->zeros, page);
        }
    }
}

/* The next data at or behind offset, the end where there is none. A file system that knows no holes
 * has all of it as data. */
static uint64_t next_data(int fd, uint64_t offset, uint64_t end)
{
    off_t found = lseek(fd, (off_t)offset, SEEK_DATA);

    if (found < 0) {
        return errno == ENXIO ? end : offset;
    }
    return (uint64_t)found < end ? (uint64_t)found : end;
}

static uint64_t next_hole(int fd, uint64_t offset, uint64_t end)
{
    off_t found = lseek(fd, (off_t)offset, SEEK_HOLE);

    return found < 0 || (uint64_t)found > end ? end : (uint64_t)found;
}

int vm_source_note_zeros(struct vm_source *s, uint32_t index, int fd, struct vm_error *err)
{
    struct vm_image *image = &s->image[index];
    uint64_t at = 0;

    image->zeros = calloc((image->size / VM_PAGE_SIZE + 63) / 64, sizeof(uint64_t));
    if (!image->zeros) {
        return vm_fail_errno(err, "memory for the zeros of a block", 0);
    }
    while (at < image->size) {
        uint64_t data = next_data(fd, at, image->size);
        uint64_t hole = next_hole(fd, data, image->size);

        note_zeros(image, at, data, true);
        note_zeros(image, data, hole, false);
        at = hole;
    }
    return 0;
}

bool vm_zeros_are_noted(const struct vm_image *image, uint64_t offset, uint64_t length)
{
    for (uint64_t page = offset >> VM_PAGE_SHIFT; page < (offset + length) >> VM_PAGE_SHIFT;
         page++) {
        if (!vm_bit_test(image->zeros, page)) {
            return false;
        }
    }
    return true;
}

/*
 * Messages without bytes are so small that a pipe holds those of many GiB, and what has been
 * announced is not sent again for who needs it now. In packet mode each message takes a slot of the
 * pipe, however small, and the pipe has few: so we are never more than those ahead.
 */
void vm_source_stay_close(const struct vm_source *s, bool close)
{
    int flags = fcntl(s->main_fd, F_GETFL);

    if (s->shares && flags >= 0) {
        fcntl(s->main_fd, F_SETFL, close ? flags | O_DIRECT : flags & ~O_DIRECT);
    }
}
