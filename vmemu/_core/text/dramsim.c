/*
 * The traces of DRAMsim3, and those of DRAMSim2 before it:
 *
 *   "0x2000D5C0 READ  30"         address, what, clock cycle of the simulator
 *   "0x1FF96FC0 P_MEM_WR 160"     the words of the kinds "mase" and "k6"
 *   "0x12345680 write 0a1b2c3d"   of the kind "misc": the data and no cycle
 *   "0x12345680 READ 10 64B"      drsim: the size too
 *
 * The address is hexadecimal with or without 0x.
 */
#include <string.h>

#include "line.h"

enum { IO = VM_FETCH + 1 };

static const struct command {
    const char *word;
    int kind;
} commands[] = {
    {"READ", VM_LOAD},      {"WRITE", VM_STORE},     {"read", VM_LOAD},     {"write", VM_STORE},
    {"P_MEM_RD", VM_LOAD},  {"P_MEM_WR", VM_STORE},  {"P_FETCH", VM_FETCH}, {"IFETCH", VM_FETCH},
    {"P_LOCK_RD", VM_LOAD}, {"P_LOCK_WR", VM_STORE}, {"BOFF", VM_STORE},    {"P_IO_RD", IO},
    {"P_IO_WR", IO},        {"P_INT_ACK", IO},
};

/* Kind of the access from its word, or -1. */
static int command_kind(const char *word, size_t length)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strlen(commands[i].word) == length && memcmp(commands[i].word, word, length) == 0) {
            return commands[i].kind;
        }
    }
    return -1;
}

/* The size behind a cycle; 1 where there is none, 0 where something else is. */
static uint64_t size_after_cycle(const char *at, const char *end)
{
    uint64_t cycle, size;

    at = vm_skip_spaces(at);
    if (at == end) {
        return 1;
    }
    at = vm_parse_decimal(at, &cycle);
    at = at ? vm_skip_spaces(at) : NULL;
    if (at == end) {
        return 1;
    }
    at = at ? vm_parse_decimal(at, &size) : NULL;
    return at && *at == 'B' && vm_skip_spaces(at + 1) == end ? size : 0;
}

enum vm_line vm_line_dramsim(struct vm_text *t, const char *line, const char *end)
{
    const char *at = vm_skip_spaces(line), *word;
    uint64_t address, size;
    bool has_data;
    int kind;

    at = at[1] == 'x' || at[1] == 'X' ? vm_parse_0x(at, &address) : vm_parse_hex(at, &address);
    if (!at || (*at != ' ' && *at != '\t')) {
        return VM_LINE_UNKNOWN;
    }
    word = at = vm_skip_spaces(at);
    while (at < end && *at != ' ' && *at != '\t') {
        at++;
    }
    kind = command_kind(word, (size_t)(at - word));
    has_data = kind == VM_STORE && *word == 'w';
    size = has_data ? 1 : size_after_cycle(at, end);
    if (kind < 0 || !vm_text_sound(address, size)) {
        return VM_LINE_UNKNOWN;
    }
    if (kind == IO) {
        t->dropped[0]++;
    } else {
        vm_text_put(t, (struct vm_text_access){
                           .address = address, .size = (uint16_t)size, .kind = (uint8_t)kind});
    }
    return VM_LINE_KNOWN;
}
