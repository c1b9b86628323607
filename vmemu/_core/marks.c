/* Where the dictionary's pages lie, and what was written to them: the part of a guest that touches
 * nothing. */
#include <string.h>

#include "access.h"
#include "order.h"
#include "piece.h"
#include "replay.h"
#include "util.h"

enum { MARKS_PER_PAGE = VM_PAGE_SIZE / 8 };

void vm_places_fill(uint64_t *host, struct vm_page_key *key, uint64_t pages, const int32_t *block,
                    const uint64_t *offset, const uint64_t *same, const struct vm_ram *ram,
                    const struct vm_content *content)
{
    for (uint64_t i = 0; i < pages; i++) {
        const struct vm_content *c;

        if (block[i] < 0) {
            host[i] = VM_REF_OUTSIDE;
            continue;
        }
        if (same && same[i] != i) {
            host[i] = same[i] << VM_PAGE_SHIFT | VM_REF_ALIAS;
            continue;
        }
        c = &content[block[i]];
        host[i] = (ram->block[block[i]].host + offset[i]) | VM_REF_FIRST;
        key[i].initial = vm_content_base(c, offset[i]);
        key[i].written = vm_content_written_base(c, offset[i]);
        if (c->file) {
            host[i] |= VM_REF_FILE;
        } else if (vm_content_page_is_zero(c, offset[i] >> c->page_shift)) {
            host[i] |= VM_REF_ZERO;
        }
    }
}

void vm_expected_fill(const struct vm_guest *g, uint8_t *expected)
{
    for (uint64_t where = 0; where < g->pages << VM_PAGE_SHIFT; where += 8) {
        uint64_t host = g->host[where >> VM_PAGE_SHIFT], word;
        struct vm_piece p = {.where = where, .size = 8};

        if (!(host & (VM_REF_OUTSIDE | VM_REF_ALIAS))) {
            p.host = (host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE;
            word = vm_mixed_word(g, &p, vm_get_acquire(&g->marks[where >> 3]));
            memcpy(expected + where, &word, sizeof(word));
        }
    }
}

void vm_marks_gather(uint8_t *block_marks, uint32_t index, uint64_t pages, const int32_t *block,
                     const uint64_t *offset, const uint8_t *marks)
{
    for (uint64_t i = 0; i < pages; i++) {
        uint8_t *to;

        if (block[i] != (int32_t)index) {
            continue;
        }
        to = block_marks + offset[i] / 8;
        for (unsigned word = 0; word < MARKS_PER_PAGE; word++) {
            if (marks[i * MARKS_PER_PAGE + word]) { /* what was not written stays unallocated */
                to[word] |= marks[i * MARKS_PER_PAGE + word];
            }
        }
    }
}

/* Mark the bytes of one write; a write that goes on on the next page does so in the dictionary too.
 */
static void mark_write(const struct vm_guest *g, uint64_t where, unsigned size)
{
    for (uint64_t byte = where; byte < where + size; byte++) {
        uint64_t host = g->host[byte >> VM_PAGE_SHIFT];
        struct vm_piece p = {.where = host & VM_REF_ALIAS ? vm_alias_of(host, byte) : byte,
                             .size = 1};

        if (!(host & VM_REF_OUTSIDE)) {
            vm_mark_written(g, &p, vm_written_value(g, &p));
        }
    }
}

static uint32_t mark_slice(void *context, const struct vm_slice *s)
{
    const struct vm_guest *g = context;

    for (uint32_t i = 0; i < s->count; i++) {
        unsigned kind = s->what[i] & 3;

        if (kind == VM_STORE || kind == VM_MODIFY) {
            mark_write(g, vm_where_of(s, i, s->wide), s->sizes[s->what[i] >> 2]);
        }
    }
    return s->count;
}

int vm_vcpu_mark(struct vm_vcpu *v, struct vm_error *err)
{
    return vm_for_each_slice(v, 0, v->begin, false, mark_slice, (void *)v->guest, err);
}
