/*
 * The traces of Ramulator 1 and 2:
 *
 *   "LD 0x12345680"              2, LoadStoreTrace; the address in hex with 0x, or in decimal
 *   "ST 0x12345680 2 17 255"     2, LoadStoreDataTrace: with the size, and the bytes stored
 *   "0x12345680 R"               1, memory trace; hex with or without 0x
 *   "3 20734016"                 1 and 2, instruction trace: instructions without memory before it,
 *   "8 20841280 20841280"        load, and the store of the line that it displaces
 *   "3 20734016 W"               1, unfiltered instruction trace
 */
#include "line.h"

static const char *parse_address(const char *at, uint64_t *address)
{
    return at[0] == '0' && (at[1] == 'x' || at[1] == 'X') ? vm_parse_0x(at, address)
                                                          : vm_parse_decimal(at, address);
}

static bool is_at_gap(const char *at, const char *end)
{
    return at == end || *at == ' ' || *at == '\t';
}

/* Kind from the R or W, or the words that begin with it, that end the line; else -1. */
static int last_letter(const char *at, const char *end)
{
    int kind = *at == 'R' ? VM_LOAD : *at == 'W' ? VM_STORE : -1;

    while (at < end && *at >= 'A' && *at <= 'Z') {
        at++;
    }
    return vm_skip_spaces(at) == end ? kind : -1;
}

static enum vm_line put(struct vm_text *t, uint64_t address, uint64_t size, int kind)
{
    size += size == 0;
    if (!vm_text_sound(address, size)) {
        return VM_LINE_UNKNOWN;
    }
    vm_text_put(t, (struct vm_text_access){
                       .address = address, .size = (uint16_t)size, .kind = (uint8_t)kind});
    return VM_LINE_KNOWN;
}

static enum vm_line load_or_store(struct vm_text *t, const char *line, const char *end)
{
    int kind = vm_skip_word(line, end, "LD ")   ? VM_LOAD
               : vm_skip_word(line, end, "ST ") ? VM_STORE
                                                : -1;
    uint64_t address, size = 1;
    const char *at = kind >= 0 ? parse_address(vm_skip_spaces(line + 3), &address) : NULL;

    if (!at || !is_at_gap(at, end)) {
        return VM_LINE_UNKNOWN;
    }
    at = vm_skip_spaces(at);
    if (at < end) {
        at = vm_parse_decimal(at, &size);
    }
    return at && is_at_gap(at, end) ? put(t, address, size, kind) : VM_LINE_UNKNOWN;
}

static enum vm_line instruction(struct vm_text *t, const char *at, const char *end)
{
    uint64_t bubbles, load, store;
    int kind;

    at = vm_parse_decimal(at, &bubbles);
    if (!at || at == end || !is_at_gap(at, end)) {
        return VM_LINE_UNKNOWN;
    }
    at = parse_address(vm_skip_spaces(at), &load);
    if (!at || !is_at_gap(at, end)) {
        return VM_LINE_UNKNOWN;
    }
    at = vm_skip_spaces(at);
    if (at == end) {
        return put(t, load, 1, VM_LOAD);
    }
    kind = last_letter(at, end);
    if (kind >= 0) {
        return put(t, load, 1, kind);
    }
    at = parse_address(at, &store);
    if (!at || vm_skip_spaces(at) != end) {
        return VM_LINE_UNKNOWN;
    }
    put(t, load, 1, VM_LOAD);
    return put(t, store, 1, VM_STORE);
}

enum vm_line vm_line_ramulator(struct vm_text *t, const char *line, const char *end)
{
    const char *at = vm_skip_spaces(line), *behind;
    uint64_t address;

    if (*at == 'L' || *at == 'S') {
        return load_or_store(t, at, end);
    }
    behind = at[1] == 'x' || at[1] == 'X' ? vm_parse_0x(at, &address) : vm_parse_hex(at, &address);
    if (behind && behind < end && is_at_gap(behind, end)) {
        int kind = last_letter(vm_skip_spaces(behind), end);

        if (kind >= 0) {
            return put(t, address, 1, kind);
        }
    }
    return instruction(t, at, end);
}
