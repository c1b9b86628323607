/* What was written, marked without touching it, and gathered. */
#include "access.h"
#include "order.h"
#include "piece.h"
#include "replay.h"
#include "util.h"

enum { MARKS_PER_PAGE = VM_PAGE_SIZE / 8 };

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
