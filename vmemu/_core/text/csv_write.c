#include <string.h>

#include "../access.h"
#include "csv.h"

enum { DIGITS = 20, FIXED = 64 }; /* of a 64-bit number; what a line has beside numbers and names */

size_t vm_csv_room(const struct vm_csv_layout *layout)
{
    return FIXED + 4 * DIGITS + layout->longest_block;
}

static char *put_text(char *at, const char *text)
{
    size_t length = strlen(text);

    memcpy(at, text, length);
    return at + length;
}

static char *put_decimal(char *at, uint64_t value)
{
    char digits[DIGITS];
    int count = 0;

    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count) {
        *at++ = digits[--count];
    }
    return at;
}

static char *put_hex(char *at, uint64_t value)
{
    int shift = value ? (63 - __builtin_clzll(value)) / 4 * 4 : 0;

    at = put_text(at, "0x");
    for (; shift >= 0; shift -= 4) {
        *at++ = "0123456789abcdef"[value >> shift & 15];
    }
    return at;
}

/* "name,0xoffset" of the last block that starts at or below the address, or the address alone. */
static char *put_place(char *at, const struct vm_csv_layout *layout, uint64_t address)
{
    uint32_t block = layout->blocks;

    if (!layout->block) {
        return put_hex(at, address);
    }
    while (block > 1 && layout->start[block - 1] > address) {
        block--;
    }
    at = put_text(at, layout->block[block - 1]);
    *at++ = ',';
    return put_hex(at, address - layout->start[block - 1]);
}

size_t vm_csv_write(const struct vm_csv_layout *layout, uint64_t stream,
                    const struct vm_columns *from, uint64_t count, char *text)
{
    static const char *const kinds[] = {
        [VM_LOAD] = "load", [VM_STORE] = "store", [VM_MODIFY] = "modify", [VM_FETCH] = "fetch"};
    char *at = text;

    for (uint64_t i = 0; i < count; i++) {
        if (layout->stream) {
            at = put_decimal(at, stream);
            *at++ = ',';
        }
        if (layout->time) {
            at = put_decimal(at, from->times[i]);
            *at++ = ',';
        }
        if (layout->kind) {
            at = put_text(at, kinds[from->kinds[i] & 3]);
            *at++ = ',';
        }
        at = put_place(at, layout, from->addresses[i]);
        if (layout->size) {
            *at++ = ',';
            at = put_decimal(at, from->sizes[i]);
        }
        *at++ = '\n';
    }
    return (size_t)(at - text);
}
