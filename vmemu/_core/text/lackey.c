/*
 * The lines of lackey are
 *
 *   "I  0401ab70,3"   instruction fetch       " L 1fff000738,8"   load
 *   " S 1fff000738,8" store                   " M 0421b3c0,4"     modify (load and store at once)
 *
 * with the address in hex without 0x and the size in decimal. Valgrind's own lines start with its
 * process id between "==", "--" or "**", and with --time-stamp=yes the time before it. The
 * program's own output may stand between them.
 */
#include "line.h"

/* Kind of the access from the first three bytes of its line, or -1. */
static int line_kind(const char *line)
{
    if (line[0] == ' ') {
        int kind = line[1] == 'L'   ? VM_LOAD
                   : line[1] == 'S' ? VM_STORE
                   : line[1] == 'M' ? VM_MODIFY
                                    : -1;

        return kind >= 0 && line[2] == ' ' ? kind : -1;
    }
    return line[0] == 'I' && line[1] == ' ' && line[2] == ' ' ? VM_FETCH : -1;
}

/* "00:00:00:01.234 ", of --time-stamp=yes */
static const char *skip_time(const char *at)
{
    const char *start = at;

    while ((*at >= '0' && *at <= '9') || *at == ':' || *at == '.') {
        at++;
    }
    return *at == ' ' ? at + 1 : start;
}

/* "==123==", "--123--" and "**123**" open the lines that valgrind itself writes. */
static bool is_valgrinds_own(const char *line)
{
    char mark = line[0];
    uint64_t pid;
    const char *at;

    if ((mark != '=' && mark != '-' && mark != '*') || line[1] != mark) {
        return false;
    }
    at = vm_parse_decimal(skip_time(line + 2), &pid);
    return at && at[0] == mark && at[1] == mark;
}

enum vm_line vm_line_lackey(struct vm_text *t, const char *line, const char *end)
{
    int kind = line_kind(line);
    uint64_t address, size;
    const char *at;

    if (kind < 0) {
        return is_valgrinds_own(line) ? VM_LINE_KNOWN : VM_LINE_UNKNOWN;
    }
    at = vm_parse_hex(line + 3, &address);
    at = at && *at == ',' ? vm_parse_decimal(at + 1, &size) : NULL;
    if (at != end || !vm_text_sound(address, size)) {
        return VM_LINE_UNKNOWN;
    }
    vm_text_put(t, (struct vm_text_access){
                       .address = address, .size = (uint16_t)size, .kind = (uint8_t)kind});
    return VM_LINE_KNOWN;
}
