#include "carry.h"

#include "source_parts.h"
#include "util.h"

enum { BRIDGED = 3 }; /* pages */

void vm_carry_plan(struct vm_carry *c, struct vm_window window)
{
    if (window.left > 0 && c->count < VM_WINDOWS) {
        c->window[(c->first + c->count++) % VM_WINDOWS] = window;
    }
}

void vm_carry_around(struct vm_carry *c, const struct vm_source *s, uint32_t block, uint64_t page)
{
    const struct vm_image *image = &s->image[block];
    uint64_t most = VM_AROUND_BYTES >> image->page_shift;
    uint64_t pages = s->fault_around < most ? s->fault_around : most;
    uint64_t first, end;

    if (pages < 2) {
        return;
    }
    first = page - page % pages;
    end = first + pages < image->pages ? first + pages : image->pages;
    vm_carry_plan(c, (struct vm_window){page + 1, end - page - 1, 1, block, VM_FLAG_AROUND});
    vm_carry_plan(c, (struct vm_window){page - 1, page - first, -1, block, VM_FLAG_AROUND});
}

static uint64_t take(struct vm_window *w)
{
    uint64_t page = w->next;

    w->next += (uint64_t)w->stride;
    w->left--;
    return page;
}

static bool is_free_zero(const struct vm_image *image, uint64_t page)
{
    /* Looked at before it is read: what was sent may have been released. */
    return !vm_bit_test(image->sent, page) && vm_page_is_zero(image, page);
}

/*
 * Whether the next page goes into a run of pages with bytes: it has bytes, or it is one of few
 * zeros with bytes behind them. A message of their own, and one more for what is behind them, takes
 * longer than the copying of so many. What is in an image carries no bytes, and a hole of it stays
 * one.
 */
static bool joins(const struct vm_window *w, const struct vm_image *image, uint32_t room)
{
    uint64_t page = w->next, zeros = 0;

    while (zeros < w->left && zeros <= BRIDGED && is_free_zero(image, page)) {
        zeros++;
        page += (uint64_t)w->stride;
    }
    return zeros == 0 || (zeros <= BRIDGED && zeros < w->left && zeros < room && !image->shared &&
                          !vm_bit_test(image->sent, page));
}

/* Claim the next pages that are free, side by side and alike, zeros or not; how many. */
static uint32_t claim(struct vm_window *w, const struct vm_image *image, uint64_t *first,
                      bool *zero)
{
    uint32_t limit = VM_CARRY_BYTES >> image->page_shift, pages = 1;
    bool side_by_side = w->stride == 1 || w->stride == -1;
    uint64_t page;

    do {
        if (w->left == 0) {
            return 0;
        }
        page = take(w);
    } while (vm_bit_test(image->sent, page) || vm_bit_test_and_set(image->sent, page));
    /* It goes by the urgent channel: whoever asks for it meanwhile need not be sent it again. */
    vm_bit_test_and_set(image->asked, page);
    *first = page;
    *zero = vm_page_is_zero(image, page);
    while (side_by_side && w->left > 0 && pages < limit && !vm_bit_test(image->sent, w->next) &&
           (*zero ? vm_page_is_zero(image, w->next) : joins(w, image, limit - pages)) &&
           !vm_bit_test_and_set(image->sent, w->next)) {
        page = take(w);
        vm_bit_test_and_set(image->asked, page);
        *first = page < *first ? page : *first;
        pages++;
    }
    return pages;
}

int vm_carry_some(struct vm_carry *c, struct vm_source *s, int fd, struct vm_error *err)
{
    struct vm_window *w = &c->window[c->first];
    const struct vm_image *image = &s->image[w->block];
    uint64_t first = 0;
    bool zero = false;
    uint32_t pages = claim(w, image, &first, &zero);
    struct vm_run run = {
        .block = w->block, .first = first, .pages = pages, .zero = zero, .flags = w->flags};

    if (w->left == 0) {
        c->first = (c->first + 1) % VM_WINDOWS;
        c->count--;
    }
    if (pages == 0) {
        return 0;
    }
    vm_add(&s->pages_carried, pages);
    vm_add(&s->limiter_owed, zero ? 0 : (uint64_t)pages << image->page_shift);
    return vm_source_send_run(s, fd, &run, err);
}
