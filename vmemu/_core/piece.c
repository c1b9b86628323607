#include "piece.h"

uint32_t vm_block_of(const struct vm_guest *g, uint64_t host, uint64_t *offset)
{
    uint32_t block = (uint32_t)vm_ram_find(g->ram, host);

    *offset = host - g->ram->block[block].host;
    return block;
}

static uint64_t initial_word(const struct vm_guest *g, const struct vm_piece *p)
{
    uint64_t offset;

    if (g->host[p->where >> VM_PAGE_SHIFT] & VM_REF_FILE) {
        uint32_t block = vm_block_of(g, p->host, &offset);

        return vm_content_initial(&g->content[block], offset & ~UINT64_C(7));
    }
    return g->host[p->where >> VM_PAGE_SHIFT] & VM_REF_ZERO ? 0 : vm_seeded_word(g, p);
}

uint64_t vm_mixed_word(const struct vm_guest *g, const struct vm_piece *p, uint8_t mark)
{
    uint64_t mask = vm_mark_mask(mark);

    return (initial_word(g, p) & ~mask) | (vm_written_word(g, p) & mask);
}

void vm_judge_read(struct vm_vcpu *v, const struct vm_piece *p, uint8_t mark, uint64_t found)
{
    uint64_t written = vm_written_word(v->guest, p), initial = initial_word(v->guest, p);
    uint64_t marked = vm_mark_mask(mark);
    uint64_t wrong = 0, offset;

    for (unsigned byte = 0; byte < 8; byte++) {
        uint64_t mask = UINT64_C(0xFF) << (byte * 8);
        bool as_written = !((found ^ written) & mask), as_initial = !((found ^ initial) & mask);

        if (!as_written && (!as_initial || (marked & mask))) {
            wrong |= mask;
        }
    }
    wrong &= vm_piece_mask(p);
    /* Who is let go when a run is stopped finds ordinary memory: what is read then is not the
     * guest's. */
    if (!wrong || vm_get_acquire(&v->stop)) {
        return;
    }
    vm_count(&v->reads_wrong, 1);
    if (v->noted < sizeof(v->mismatch) / sizeof(v->mismatch[0])) {
        unsigned first = (unsigned)__builtin_ctzll(wrong) / 8;
        uint32_t block = vm_block_of(v->guest, p->host & ~UINT64_C(7), &offset);
        uint64_t expected = (marked >> (first * 8) & 0xFF) ? written : initial;

        v->mismatch[v->noted++] = (struct vm_mismatch){
            .offset = offset + first,
            .block = block,
            .expected = (uint8_t)(expected >> (first * 8)),
            .found = (uint8_t)(found >> (first * 8)),
        };
    }
}

void vm_judge_unexpected(struct vm_vcpu *v, const struct vm_piece *p, uint64_t expected,
                         uint64_t found)
{
    uint64_t written = vm_written_value(v->guest, p);
    uint8_t promised = 0;

    for (unsigned byte = 0; byte < p->size; byte++) {
        uint8_t value = (uint8_t)(written >> (byte * 8));

        if ((uint8_t)(expected >> (byte * 8)) == value) {
            promised |= (uint8_t)(1u << (p->where % 8 + byte));
        } else if ((uint8_t)(found >> (byte * 8)) == value) {
            /* Marked elsewhere: by a client, or before the guest came here. A byte alone, as
             * another vCPU may write those next to it. */
            vm_set_release(&v->guest->expected[p->where + byte], value);
        }
    }
    vm_judge_read(v, p, promised, found << (p->where % 8 * 8));
}
