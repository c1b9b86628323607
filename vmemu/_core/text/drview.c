/*
 * What DynamoRIO prints with "-tool view". Over its versions an entry began in these ways:
 *
 *   "T342625   "                                   thread
 *   "   173370: T1774669 "                         number of the entry, thread
 *   "       47446       37770:     2765543 "       numbers of entry and instruction, thread
 *   "           7           1:       W0.T3 "       ... workload and thread
 *
 * and goes on with one of
 *
 *   "read         8 byte(s) @ 0x00007fdf64e2adc8 by PC 0x0000000000404a7e"
 *   "write        8 byte(s) @ 0x00007ffd1fded688 by PC 0x00007fcae55efa9d"
 *   "ifetch       3 byte(s) @ 0x0000000000402680 f3 48 a5             rep movsq"
 *   "pref-r-L1 ...", "dflush ..."                 neither loads nor stores
 *   "<marker: timestamp 13309323446399692>"       microseconds since 1601
 *   "<marker: tid 1774668 on core 3>"             and others
 *   "                     00000026"               more bytes of the instruction before it
 *   "0x00007f8aa4a7f6a6  4c 8b 03  mov ..."       an instruction, with the first of the four
 */
#include "line.h"

enum { TIME, IN_KERNEL }; /* what is kept between lines */

static const uint64_t UNIX_EPOCH_US = UINT64_C(11644473600) * 1000000;

/* Lines that belong to the tool and are no entries begin like this. */
static const char *const around[] = {"----",      "Output format:", "<--record#",
                                     "<record#>", "<...>",          "View tool results:"};

static bool is_around(const char *line, const char *end)
{
    for (size_t i = 0; i < sizeof(around) / sizeof(around[0]); i++) {
        if (vm_skip_word(line, end, around[i])) {
            return true;
        }
    }
    return false;
}

/* The thread as it stands, behind it; workloads are kept apart as far as ids of Linux go. */
static const char *parse_thread(const char *at, uint32_t *thread)
{
    uint64_t workload = 0, id;

    if (*at == 'W') {
        at = vm_parse_decimal(at + 1, &workload);
        if (!at || *at != '.') {
            return NULL;
        }
        at++;
    }
    at += *at == 'T';
    at = vm_parse_decimal(at, &id);
    if (!at || *at != ' ') {
        return NULL;
    }
    *thread = (uint32_t)(workload << 22 ^ id);
    return at;
}

/* Behind the numbers of an entry and their colon; where there are none, where it began. */
static const char *skip_numbers(const char *at)
{
    uint64_t number;

    if (*at == 'T') {
        return at;
    }
    at = vm_parse_decimal(at, &number);
    if (!at) {
        return NULL;
    }
    at = vm_skip_spaces(at);
    if (*at != ':') {
        at = vm_parse_decimal(at, &number);
    }
    return at && *at == ':' ? vm_skip_spaces(at + 1) : NULL;
}

static void note_marker(struct vm_text *t, const char *at, const char *end)
{
    const char *stamp = vm_skip_word(at, end, "<marker: timestamp ");
    uint64_t us;

    if (stamp && vm_parse_decimal(stamp, &us)) {
        us -= us >= UNIX_EPOCH_US ? UNIX_EPOCH_US : 0;
        t->memory[TIME] = us <= UINT64_MAX / 2000 ? us * 1000 : t->memory[TIME];
    } else if (vm_skip_word(at, end, "<marker: trace start for ")) {
        t->memory[IN_KERNEL] = true;
    } else if (vm_skip_word(at, end, "<marker: trace end for ")) {
        t->memory[IN_KERNEL] = false;
    }
}

static void put(struct vm_text *t, struct vm_text_access access)
{
    if (!t->memory[IN_KERNEL]) {
        access.time = t->memory[TIME];
        vm_text_put(t, access);
    } else {
        t->dropped[0] += access.kind != VM_FETCH;
    }
}

/* "NAME  SIZE byte(s) @ 0xADDRESS", then the PC of an access, the bytes of an instruction. */
static enum vm_line entry_with_address(struct vm_text *t, uint32_t thread, const char *at,
                                       const char *end)
{
    const char *name = at;
    uint64_t size, address;
    int kind;

    while (at < end && *at != ' ') {
        at++;
    }
    kind = vm_skip_word(name, end, "read ")     ? VM_LOAD
           : vm_skip_word(name, end, "write ")  ? VM_STORE
           : vm_skip_word(name, end, "ifetch ") ? VM_FETCH
                                                : -1;
    at = vm_parse_decimal(vm_skip_spaces(at), &size);
    at = at ? vm_skip_word(at, end, " byte(s) @ ") : NULL;
    at = at ? vm_parse_0x(at, &address) : NULL;
    if (!at || (at < end && *at != ' ') || !vm_text_sound(address, size + (size == 0))) {
        return VM_LINE_UNKNOWN;
    }
    if (kind >= 0) {
        put(t, (struct vm_text_access){.address = address,
                                       .stream = thread,
                                       .size = (uint16_t)(size + (size == 0)),
                                       .kind = (uint8_t)kind});
    }
    return VM_LINE_KNOWN;
}

static bool is_more_bytes(const char *at, const char *end)
{
    for (; at < end && (vm_hex_digit[(uint8_t)*at] || *at == ' '); at++) {
    }
    return at == end;
}

enum vm_line vm_line_drview(struct vm_text *t, const char *line, const char *end)
{
    const char *at = skip_numbers(vm_skip_spaces(line)), *details;
    uint64_t address;
    uint32_t thread;

    if (is_around(line, end) || (at && vm_skip_word(at, end, "total instructions"))) {
        return VM_LINE_KNOWN;
    }
    at = at ? parse_thread(at, &thread) : NULL;
    if (!at) {
        return VM_LINE_UNKNOWN;
    }
    details = vm_skip_spaces(at);
    if (*details == '<') {
        note_marker(t, details, end);
        return VM_LINE_KNOWN;
    }
    if (vm_parse_0x(details, &address)) {
        put(t, (struct vm_text_access){
                   .address = address, .stream = thread, .size = 1, .kind = VM_FETCH});
        return VM_LINE_KNOWN;
    }
    return is_more_bytes(details, end) ? VM_LINE_KNOWN
                                       : entry_with_address(t, thread, details, end);
}
