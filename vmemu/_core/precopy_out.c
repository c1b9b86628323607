/*
 * The source in pre-copy: rounds of target pages (4 KiB, whatever the block's pages are) while the
 * guest runs, and what is left to be said at the flip.
 */
#include <time.h>

#include "access.h"
#include "source_parts.h"
#include "util.h"

enum { RUN_PAGES = VM_RUN_BYTES / VM_PAGE_SIZE };
enum { PIECE_NS = 5000000, ALIVE_NS = 100000000 };

static uint64_t target_pages(const struct vm_image *image)
{
    return image->size >> VM_PAGE_SHIFT;
}

static bool over(const struct vm_source *s)
{
    return vm_get_acquire(&s->flip) || vm_get_acquire(&s->stop);
}

static int say_round(struct vm_source *s, struct vm_error *err)
{
    struct vm_header h = {.type = VM_MSG_ROUND, .pages = s->rounds};

    return vm_source_send(s, s->main_fd, &h, NULL, err);
}

/*
 * Sleeps in short pieces: the flip must not wait for a slow limit. Now and then it says which round
 * this is once more: a destination that hears nothing must take us for dead. 0, or -1.
 */
static int hold_back(struct vm_source *s, struct vm_error *err)
{
    uint64_t delay, told_ns = vm_now_ns();

    while (!over(s) && (delay = vm_limiter_delay(&s->limiter, vm_now_ns())) > 0) {
        struct timespec wait = {0, (long)(delay < PIECE_NS ? delay : PIECE_NS)};

        nanosleep(&wait, NULL);
        if (vm_now_ns() - told_ns > ALIVE_NS) {
            told_ns = vm_now_ns();
            if (say_round(s, err) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

static bool claim_dirty(struct vm_image *image, uint64_t page)
{
    uint64_t mask = UINT64_C(1) << (page & 63);

    /* Acquire: what was written before the bit was set is what is sent. */
    return __atomic_fetch_and(&image->dirty[page >> 6], ~mask, __ATOMIC_ACQ_REL) & mask;
}

static bool target_is_zero(const struct vm_image *image, uint64_t page)
{
    return vm_range_is_zero(image, page << VM_PAGE_SHIFT, VM_PAGE_SIZE);
}

static int send_target_pages(struct vm_source *s, uint32_t block, uint64_t first, uint32_t pages,
                             bool zero, struct vm_error *err)
{
    const struct vm_image *image = &s->image[block];
    uint32_t bytes = zero ? 0 : pages << VM_PAGE_SHIFT;
    struct vm_header h = {
        .type = zero ? VM_MSG_PRECOPY_ZERO : VM_MSG_PRECOPY_PAGES,
        .flags = image->shared && !zero ? VM_FLAG_IN_IMAGE : 0,
        .block = block,
        .offset = first << VM_PAGE_SHIFT,
        .pages = pages,
        .length = image->shared ? 0 : bytes,
    };

    s->pages_precopied += pages;
    s->bytes_precopied += bytes;
    vm_limiter_charge(&s->limiter, vm_now_ns(), bytes);
    return vm_source_send(s, s->main_fd, &h, image->data + h.offset, err);
}

/*
 * Send the dirty page and those behind it that are dirty and like it. The guest may write into a
 * page while it is sent; it is dirty again then, so a torn page never stays. That it is zeros may
 * be untrue by the time it is said, for the same reason.
 */
static int send_stretch(struct vm_source *s, uint32_t block, uint64_t *page, struct vm_error *err)
{
    struct vm_image *image = &s->image[block];
    uint64_t first = *page, pages = target_pages(image);
    bool zero = target_is_zero(image, first);
    uint32_t count = 1;

    while (count < RUN_PAGES && first + count < pages && vm_bit_test(image->dirty, first + count) &&
           claim_dirty(image, first + count)) {
        if (target_is_zero(image, first + count) != zero) {
            vm_bit_test_and_set(image->dirty, first + count); /* it begins the next stretch */
            break;
        }
        count++;
    }
    *page = first + count;
    return send_target_pages(s, block, first, count, zero, err);
}

static int round_of_block(struct vm_source *s, uint32_t block, struct vm_error *err)
{
    struct vm_image *image = &s->image[block];
    uint64_t page = 0;

    while (page < target_pages(image)) {
        if (!vm_get(&image->dirty[page >> 6])) {
            page = (page | 63) + 1;
            continue;
        }
        if (hold_back(s, err) < 0) {
            return -1;
        }
        if (over(s)) {
            return 0;
        }
        if (!vm_bit_test(image->dirty, page) || !claim_dirty(image, page)) {
            page++;
        } else if (send_stretch(s, block, &page, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int send_round(struct vm_source *s, struct vm_error *err)
{
    if (say_round(s, err) < 0) {
        return -1;
    }
    for (uint32_t block = 0; block < s->count && !over(s); block++) {
        if (round_of_block(s, block, err) < 0) {
            return -1;
        }
    }
    return 0;
}

int vm_source_round(struct vm_source *s, struct vm_error *err)
{
    int rc;

    s->rounds++;
    vm_source_stay_close(s, true);
    rc = send_round(s, err);
    vm_source_stay_close(s, false);
    return rc;
}

uint64_t vm_source_dirty(const struct vm_source *s, uint32_t block)
{
    const struct vm_image *image = &s->image[block];
    uint64_t count = 0;

    for (uint64_t word = 0; word < (target_pages(image) + 63) / 64; word++) {
        count += (uint64_t)__builtin_popcountll(vm_get(&image->dirty[word]));
    }
    return count;
}

static bool host_page_dirty(const struct vm_image *image, uint64_t page)
{
    uint64_t per_page = UINT64_C(1) << (image->page_shift - VM_PAGE_SHIFT);

    for (uint64_t target = page * per_page; target < (page + 1) * per_page; target++) {
        if (vm_bit_test(image->dirty, target)) {
            return true;
        }
    }
    return false;
}

uint64_t vm_source_canonicalise(struct vm_source *s, uint32_t block)
{
    struct vm_image *image = &s->image[block];
    uint64_t per_page = UINT64_C(1) << (image->page_shift - VM_PAGE_SHIFT), dirty = 0;

    for (uint64_t page = 0; page < image->pages; page++) {
        if (!host_page_dirty(image, page)) {
            vm_bit_test_and_set(image->sent, page);
            continue;
        }
        for (uint64_t target = page * per_page; target < (page + 1) * per_page; target++) {
            vm_bit_test_and_set(image->dirty, target);
        }
        dirty++;
    }
    return dirty;
}

uint64_t vm_source_dirty_run(const struct vm_source *s, uint32_t block, uint64_t *first)
{
    const struct vm_image *image = &s->image[block];
    uint64_t page = *first, end;

    while (page < image->pages && !host_page_dirty(image, page)) {
        page++;
    }
    for (end = page; end < image->pages && host_page_dirty(image, end); end++) {
    }
    *first = page;
    return end - page;
}

void vm_source_harvest(struct vm_source *s, uint64_t pages, const int32_t *block,
                       const uint64_t *offset, uint64_t *written)
{
    for (uint64_t word = 0; word < (pages + 63) / 64; word++) {
        /* Taken before the pages are sent: what is written from now on is marked again. */
        uint64_t bits = __atomic_exchange_n(&written[word], 0, __ATOMIC_ACQ_REL);

        for (; bits; bits &= bits - 1) {
            uint64_t page = word * 64 + (uint64_t)__builtin_ctzll(bits);

            if (block[page] >= 0) {
                vm_bit_test_and_set(s->image[block[page]].dirty, offset[page] >> VM_PAGE_SHIFT);
            }
        }
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the other half of the one in note_written */
}
