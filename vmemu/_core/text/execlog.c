/*
 * QEMU's plugin execlog: an instruction a line, with its accesses, several of them or none.
 *
 *   0, 0xa12, 0xf8012400, "movs r4, #0"
 *   0, 0xfec29, 0x16010f2e, "lgdtw %cs:0x6178", load, 0x107ff6178, RAM, load, 0x107ff617a, RAM
 *   1, 0x401000, 0xe8, "callq 0x401010", store, 0x7ffffff8, rsp -> 0x000000007ffffff8
 *
 * vCPU, virtual address, the first four bytes of the instruction (its size is not told), its text
 * as the disassembler wrote it, quotes and commas included. The address of an access is
 * guest-physical with "RAM" or a device's name behind it, in system emulation, and virtual without.
 * Registers that changed come from QEMU 9.0 on, when asked for.
 *
 * The plugin writes a line and its newline by two calls, so that lines of two vCPUs may stand on
 * one line: "...RAM1, 0x...". A name or an instruction's text shows where the second begins.
 */
#include "execlog.h"

#include <string.h>

#include "line.h"

enum dropped { DROPPED_IO, DROPPED_OTHER_SPACE };

/* The line being read, and what was counted of it so far. */
struct cursor {
    struct vm_text *t;
    const char *end;
    uint32_t vcpu;
    uint64_t before; /* accesses before this line */
};

static const char *end_of_item(const char *at, const char *end)
{
    const char *comma = memmem(at, (size_t)(end - at), ", ", 2);

    return comma ? comma : end;
}

static const char *parse_access_kind(const char *at, const char *end, uint8_t *kind)
{
    const char *behind = vm_skip_word(at, end, "load, ");

    *kind = behind ? VM_LOAD : VM_STORE;
    return behind ? behind : vm_skip_word(at, end, "store, ");
}

/* "eax -> 0x00000001" */
static const char *skip_register(const char *at, const char *end)
{
    const char *item_end = end_of_item(at, end);
    const char *arrow = memmem(at, (size_t)(item_end - at), " -> 0x", 6);

    if (!arrow) {
        return NULL;
    }
    for (at = arrow + 6; vm_hex_digit[(uint8_t)*at]; at++) {
    }
    return at > arrow + 6 ? at : NULL;
}

static void put_access(struct cursor *c, uint64_t address, uint8_t kind, const char *name,
                       size_t name_length)
{
    uint64_t *space = &c->t->memory[VM_EXECLOG_SPACE];
    uint64_t own = name ? VM_EXECLOG_PHYSICAL : VM_EXECLOG_VIRTUAL;

    *space = *space ? *space : own;
    if (name && (name_length != 3 || memcmp(name, "RAM", 3) != 0)) {
        c->t->dropped[DROPPED_IO]++;
    } else if (*space != own) {
        c->t->dropped[DROPPED_OTHER_SPACE]++;
    } else {
        vm_text_put(c->t, (struct vm_text_access){
                              .address = address, .stream = c->vcpu, .size = 1, .kind = kind});
    }
}

/* Where a device's name ends: before the vCPU of another line that follows without a newline. */
static const char *end_of_name(const char *at, const char *end)
{
    const char *name_end = end_of_item(at, end), *digits = name_end;

    if (!vm_skip_word(name_end, end, ", 0x")) {
        return name_end;
    }
    while (digits > at && digits[-1] >= '0' && digits[-1] <= '9') {
        digits--;
    }
    return digits > at ? digits : NULL;
}

/* Behind an access, of which at is the address. */
static const char *take_access(struct cursor *c, const char *at, uint8_t kind)
{
    const char *name = NULL;
    uint64_t address;
    uint8_t next;

    if (c->t->filled - c->before >= VM_TEXT_LINE_ACCESSES) {
        return NULL;
    }
    at = vm_parse_0x(at, &address);
    if (!at) {
        return NULL;
    }
    if (vm_skip_word(at, c->end, ", ") && !parse_access_kind(at + 2, c->end, &next) &&
        !skip_register(at + 2, c->end)) {
        name = at + 2;
        at = end_of_name(name, c->end);
        if (!at || at == name) {
            return NULL;
        }
    }
    put_access(c, address, kind, name, (size_t)(at - name));
    return at;
}

/* Accesses and registers, up to the end or to something else. */
static const char *take_items(struct cursor *c, const char *at)
{
    const char *item, *behind;
    uint8_t kind;

    while (at && (item = vm_skip_word(at, c->end, ", ")) != NULL) {
        behind = parse_access_kind(item, c->end, &kind);
        at = behind ? take_access(c, behind, kind) : skip_register(item, c->end);
    }
    return at;
}

/* Whether an instruction's text ends before this: nothing is behind it, an item, or another line.
 */
static bool is_rest(const char *at, const char *end)
{
    const char *item = vm_skip_word(at, end, ", ");
    uint64_t number;
    uint8_t kind;

    if (at == end) {
        return true;
    }
    if (item) {
        return parse_access_kind(item, end, &kind) || skip_register(item, end);
    }
    at = vm_parse_decimal(at, &number);
    return at && vm_skip_word(at, end, ", 0x");
}

/* Behind the instruction's text and its closing quote. */
static const char *skip_instruction(const char *at, const char *end)
{
    while ((at = memchr(at, '"', (size_t)(end - at))) != NULL) {
        at++;
        if (is_rest(at, end)) {
            return at;
        }
    }
    return NULL;
}

static const char *take_line(struct cursor *c, const char *at)
{
    uint64_t vcpu, pc, opcode;

    at = vm_parse_decimal(at, &vcpu);
    at = at && vcpu <= UINT32_MAX ? vm_skip_word(at, c->end, ", ") : NULL;
    at = at ? vm_parse_0x(at, &pc) : NULL;
    at = at ? vm_skip_word(at, c->end, ", ") : NULL;
    at = at ? vm_parse_0x(at, &opcode) : NULL;
    at = at ? vm_skip_word(at, c->end, ", \"") : NULL;
    at = at ? skip_instruction(at, c->end) : NULL;
    if (!at || c->t->filled - c->before >= VM_TEXT_LINE_ACCESSES) {
        return NULL;
    }
    c->vcpu = (uint32_t)vcpu;
    vm_text_put(c->t, (struct vm_text_access){
                          .address = pc, .stream = c->vcpu, .size = 1, .kind = VM_FETCH});
    return take_items(c, at);
}

enum vm_line vm_line_execlog(struct vm_text *t, const char *line, const char *end)
{
    struct cursor c = {.t = t, .end = end, .before = t->filled};
    uint64_t fetches = t->fetches, io = t->dropped[DROPPED_IO];
    uint64_t other_space = t->dropped[DROPPED_OTHER_SPACE];

    while (line && line < end) {
        line = take_line(&c, line);
    }
    if (line == end) {
        return VM_LINE_KNOWN;
    }
    t->filled = c.before;
    t->fetches = fetches;
    t->dropped[DROPPED_IO] = io;
    t->dropped[DROPPED_OTHER_SPACE] = other_space;
    return VM_LINE_UNKNOWN;
}
