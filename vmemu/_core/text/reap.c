/*
 * A line of REAP's trace is the offset of a page in the guest's memory file, in bytes and in hex
 * without 0x. Early versions put two decimal numbers behind it: a time that was never set,
 * and how many pages had been served.
 *
 *   0            3f9d000,0,17
 */
#include "line.h"

enum { PAGE_BITS = VM_PAGE_SIZE - 1 };

enum vm_line vm_line_reap(struct vm_text *t, const char *line, const char *end)
{
    uint64_t offset, ignored;
    const char *at = vm_parse_hex(line, &offset);

    for (int i = 0; i < 2 && at && at < end; i++) {
        at = *at == ',' ? vm_parse_decimal(at + 1, &ignored) : NULL;
    }
    if (at != end || (offset & PAGE_BITS) != 0) {
        return VM_LINE_UNKNOWN;
    }
    vm_text_put(t, (struct vm_text_access){.address = offset, .size = 1, .kind = VM_LOAD});
    return VM_LINE_KNOWN;
}
