#include "content.h"

#include "util.h"

enum { STRETCH = 4096 }; /* the smallest page: zeros are decided once for each */

void vm_content_fill(const struct vm_content *c, uint8_t *image, uint64_t length)
{
    uint64_t page_size = UINT64_C(1) << c->page_shift;

    for (uint64_t start = 0; start < length; start += page_size) {
        uint64_t base = vm_content_base(c, start);
        uint64_t *word = (uint64_t *)(image + start);

        if (vm_content_page_is_zero(c, start >> c->page_shift)) {
            continue; /* fresh memory is zeros already */
        }
        for (uint64_t i = 0; i < page_size / 8; i++) {
            word[i] = vm_mix(base + i * VM_CONTENT_STEP);
        }
    }
}

static void note_mismatch(struct vm_verify *v, uint32_t block, uint64_t offset, uint64_t expected,
                          uint64_t found)
{
    uint64_t differ = expected ^ found;
    unsigned first = (unsigned)__builtin_ctzll(differ) / 8;

    for (unsigned byte = 0; byte < 8; byte++) {
        v->bytes_wrong += (differ >> (byte * 8) & 0xFF) != 0;
    }
    if (v->noted < sizeof(v->mismatch) / sizeof(v->mismatch[0])) {
        v->mismatch[v->noted++] = (struct vm_mismatch){
            .offset = offset + first,
            .block = block,
            .expected = (uint8_t)(expected >> (first * 8)),
            .found = (uint8_t)(found >> (first * 8)),
        };
    }
}

/* Words [offset, offset + length) that lie on one page, so that zeros are decided once. */
static void verify_stretch(struct vm_verify *v, uint32_t block, const uint8_t *host,
                           uint64_t offset, uint64_t length, const struct vm_content *c,
                           const uint8_t *marks)
{
    const uint64_t *found = (const uint64_t *)(host + offset);
    bool zero = vm_content_page_is_zero(c, offset >> c->page_shift);
    uint64_t base = vm_content_base(c, offset);

    for (uint64_t i = 0; i < length / 8; i++) {
        uint64_t at = offset + i * 8;
        uint64_t expected = c->file ? vm_content_initial(c, at)
                            : zero  ? 0
                                    : vm_mix(base + i * VM_CONTENT_STEP);

        if (marks && marks[at >> 3]) {
            uint64_t mask = vm_mark_mask(marks[at >> 3]);

            expected = (expected & ~mask) | (vm_content_written(c, at) & mask);
        }
        if (VM_UNLIKELY(found[i] != expected)) {
            note_mismatch(v, block, at, expected, found[i]);
        }
    }
    vm_add(&v->bytes_checked, length);
}

static void verify_zeros(struct vm_verify *v, uint32_t block, const uint8_t *host, uint64_t offset)
{
    const uint64_t *found = (const uint64_t *)(host + offset);

    for (uint64_t i = 0; i < STRETCH / 8; i++) {
        if (found[i]) {
            note_mismatch(v, block, offset + i * 8, 0, found[i]);
        }
    }
    vm_add(&v->bytes_checked, STRETCH);
}

void vm_verify_block(struct vm_verify *v, uint32_t block, const uint8_t *host, uint64_t size,
                     const struct vm_content *c, const uint8_t *marks, const uint8_t *given_back)
{
    for (uint64_t offset = 0; offset < size && !vm_get(&v->stop); offset += STRETCH) {
        if (given_back && given_back[offset >> c->page_shift]) {
            verify_zeros(v, block, host, offset);
        } else {
            verify_stretch(v, block, host, offset, STRETCH, c, marks);
        }
    }
}
