/*
 * A sample of perf script is a line of fields in a fixed order, of which any may be left out:
 *
 *   COMM PID/TID [CPU] SECONDS: PERIOD EVENT: REST
 *
 * COMM may hold anything. In REST, tracepoints print what the kernel made of their arguments:
 *
 *   exceptions:page_fault_user: address=0x7f8fbd516b70 ip=0x7f8fbd516b70 error_code=0x14
 *   exceptions:page_fault_user: user page fault, address=0x3f.. epc=0x3f.. cause=0xf     RISC-V
 *   kvm:kvm_page_fault: address fee00000 error_code 6                                    to 5.19
 *   kvm:kvm_page_fault: vcpu 0 rip 0xf.. address 0x00000000fee00000 error_code 0x..      from 6.2
 *
 * and software events the address that was touched, in 16 columns, then a space and the
 * instruction. Where only one of the two is printed, its column alone tells which.
 *
 *   page-faults:     7f2a61267110 dl_close_state.2 (/lib/ld.so) ffffffff817554ea elf_load ([..])
 *   page-faults:  ffffffff817554ea elf_load+0x28a ([kernel.kallsyms])         no address
 *
 * A call chain stands on lines of its own behind its sample, ended by an empty line.
 *
 * A fault on an instruction fetch is a load here: whatever it was for, its page had to come, and
 * most events can't tell. Bit 1 of an error code is a write for each who makes one: the page fault
 * itself, EPT violations (exit qualification) and nested page faults of SVM.
 */
#include "perf.h"

#include <string.h>

#include "line.h"

enum { MAX_FIELDS = 24, ADDRESS_COLUMNS = 16 };

#define KERNEL_HALF (1ull << 63)
#define ERROR_WRITE 2
#define CAUSE_STORE 15 /* RISC-V: store or AMO page fault */

struct field {
    const char *start, *end;
};

struct sample {
    uint64_t time, period, thread;
    uint64_t fields; /* VM_PERF_HAS_* */
    enum vm_perf_family family;
    const char *rest; /* behind the colon of the event */
};

static const struct {
    const char *name;
    enum vm_perf_family family;
} events[] = {
    {"page-faults", VM_PERF_SOFTWARE},
    {"faults", VM_PERF_SOFTWARE},
    {"minor-faults", VM_PERF_MINOR_MAJOR},
    {"major-faults", VM_PERF_MINOR_MAJOR},
    {"exceptions:page_fault_user", VM_PERF_EXCEPTIONS},
    {"exceptions:page_fault_kernel", VM_PERF_EXCEPTIONS},
    {"kvm:kvm_page_fault", VM_PERF_KVM},
};

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* "page-faults:", also with modifiers or as of its unit: "page-faults:uH:", "software/faults/u:" */
static enum vm_perf_family event_family(struct field field)
{
    const char *end = field.end - 1, *unit = vm_skip_word(field.start, end, "software/"), *at;

    for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++) {
        at = vm_skip_word(unit ? unit : field.start, end, events[i].name);
        if (!at) {
            continue;
        }
        if (at < end && (*at == ':' || *at == '/')) {
            for (at++; at < end && is_letter(*at); at++) {
            }
        }
        if (at == end) {
            return events[i].family;
        }
    }
    return VM_PERF_NONE;
}

/* "12487.196124:" */
static bool is_time(struct field field, uint64_t *ns)
{
    return memchr(field.start, '.', (size_t)(field.end - field.start)) && field.end[-1] == ':' &&
           vm_parse_seconds(field.start, ns) == field.end - 1;
}

static bool is_number(struct field field, uint64_t *value)
{
    return vm_parse_decimal(field.start, value) == field.end;
}

/* "13391" or "13391/13392": the thread is the last. */
static bool is_thread(struct field field, uint64_t *thread)
{
    const char *at = vm_parse_decimal(field.start, thread);

    if (at && at < field.end && *at == '/') {
        at = vm_parse_decimal(at + 1, thread);
    }
    return at == field.end && *thread <= UINT32_MAX;
}

static bool is_cpu(struct field field)
{
    uint64_t cpu;

    return field.start[0] == '[' && field.end[-1] == ']' &&
           vm_parse_decimal(field.start + 1, &cpu) == field.end - 1;
}

/* Where the CPU was, of the field misc: "U", "K", "Hg" */
static bool is_misc(struct field field)
{
    const char *at = field.start;

    while (at < field.end && is_letter(*at)) {
        at++;
    }
    return at == field.end && at - field.start <= 2;
}

/*
 * Understands the fields in front of an event, the last first, as the command's name is the first
 * and may look like any of them. Returns whether they can be those of a sample.
 */
static bool fields_before(const struct field *fields, int count, struct sample *sample)
{
    uint64_t ignored;
    int left = count;

    if (left > 1 && is_number(fields[left - 1], &sample->period) &&
        (is_time(fields[left - 2], &ignored) || is_cpu(fields[left - 2]) ||
         is_thread(fields[left - 2], &ignored))) {
        left--;
    } else {
        sample->period = 0;
    }
    if (left > 0 && is_time(fields[left - 1], &sample->time)) {
        sample->fields |= VM_PERF_HAS_TIME;
        left--;
    }
    if (left > 1 && is_misc(fields[left - 1]) &&
        (is_cpu(fields[left - 2]) || is_thread(fields[left - 2], &ignored))) {
        left--;
    }
    if (left > 0 && is_cpu(fields[left - 1])) {
        left--;
    }
    if (left > 0 && is_thread(fields[left - 1], &sample->thread)) {
        sample->fields |= VM_PERF_HAS_THREAD;
    }
    return sample->fields != 0 || count == 0;
}

static bool is_hex(struct field field)
{
    uint64_t value;

    return vm_parse_hex(field.start, &value) == field.end;
}

/* Lines that are no sample: call chains, sources, and records that are shown on demand */
static enum vm_line other_line(const char *line, const struct field *fields, int count)
{
    struct sample sample = {0};
    bool source;
    int i;

    source = count <= 2 && fields[0].start == line + 2 && line[0] == ' ';
    if (is_hex(fields[0]) || source) {
        return VM_LINE_KNOWN;
    }
    for (i = 1; i < count; i++) {
        bool record = vm_skip_word(fields[i].start, fields[i].end, "PERF_RECORD_") != NULL;

        sample.fields = 0;
        if ((record || fields[i].end[-1] == ':') && fields_before(fields, i, &sample) &&
            sample.fields & VM_PERF_HAS_TIME) {
            return VM_LINE_KNOWN;
        }
    }
    return VM_LINE_UNKNOWN;
}

/* Finds the event of a sample; false if this line is none of a fault. */
static bool find_fault(const char *line, const char *end, struct field *fields, int *count,
                       struct sample *sample)
{
    const char *at = line;

    for (*count = 0; *count < MAX_FIELDS; (*count)++) {
        struct field *field = &fields[*count];

        at = vm_skip_spaces(at);
        if (at >= end) {
            return false;
        }
        field->start = at;
        while (at < end && *at != ' ' && *at != '\t') {
            at++;
        }
        field->end = at;
        sample->family = field->end[-1] == ':' ? event_family(*field) : VM_PERF_NONE;
        sample->fields = 0;
        if (sample->family != VM_PERF_NONE && fields_before(fields, *count, sample)) {
            sample->rest = at;
            return true;
        }
    }
    return false;
}

/* Behind `name` and one of " =", or NULL. */
static const char *find_value(const char *at, const char *end, const char *name)
{
    size_t length = strlen(name);

    at = memmem(at, (size_t)(end - at), name, length);
    return at && at + length < end && (at[length] == ' ' || at[length] == '=') ? at + length + 1
                                                                               : NULL;
}

static const char *parse_any_hex(const char *at, uint64_t *value)
{
    const char *behind = vm_parse_0x(at, value);

    return behind ? behind : vm_parse_hex(at, value);
}

/* Kind of access from the error code, or RISC-V's cause; -1 if there is none. */
static int kind_of(const char *rest, const char *end)
{
    const char *value = find_value(rest, end, "error_code");
    uint64_t code;

    if (value && parse_any_hex(value, &code)) {
        return code & ERROR_WRITE ? VM_STORE : VM_LOAD;
    }
    value = find_value(rest, end, "cause");
    if (value && vm_parse_0x(value, &code)) {
        return code == CAUSE_STORE ? VM_STORE : VM_LOAD;
    }
    return -1;
}

/* Whether an instruction's address stands behind that of what it touched. */
static bool another_address(const char *at, const char *end)
{
    const char *symbol_end = memmem(at, (size_t)(end - at), ") ", 2);
    struct field field = {.start = vm_skip_spaces(symbol_end ? symbol_end + 2 : at)};

    for (field.end = field.start; field.end < end && *field.end != ' '; field.end++) {
    }
    return field.end > field.start && is_hex(field) && (symbol_end || field.end == end);
}

/* The address that a software event prints; false if it prints none. */
static bool software_address(const char *rest, const char *end, uint64_t *address)
{
    const char *behind = vm_parse_hex(vm_skip_spaces(rest), address);

    if (!behind || (behind < end && *behind != ' ')) {
        return false;
    }
    return behind - rest == 1 + ADDRESS_COLUMNS ||
           (behind - rest != 2 + ADDRESS_COLUMNS && another_address(behind, end));
}

static enum vm_line put_fault(struct vm_text *t, const struct sample *sample, uint64_t address,
                              int kind)
{
    uint64_t *memory = t->memory, fields = sample->fields | VM_PERF_FIELDS_KNOWN;

    if (memory[VM_PERF_FIELDS] != 0 && memory[VM_PERF_FIELDS] != fields) {
        return VM_LINE_UNKNOWN;
    }
    memory[VM_PERF_ADDRESSES]++;
    if (address >= KERNEL_HALF) {
        t->dropped[VM_PERF_KERNEL_ADDRESS]++;
        return VM_LINE_KNOWN;
    }
    if (memory[VM_PERF_FAMILY] != VM_PERF_NONE && memory[VM_PERF_FAMILY] != sample->family) {
        t->dropped[VM_PERF_OTHER_EVENT]++;
        return VM_LINE_KNOWN;
    }
    memory[VM_PERF_FAMILY] = sample->family;
    memory[VM_PERF_FIELDS] = fields;
    if (sample->period > memory[VM_PERF_PERIOD]) {
        memory[VM_PERF_PERIOD] = sample->period;
    }
    vm_text_put(t, (struct vm_text_access){.address = address,
                                           .time = sample->time,
                                           .stream = (uint32_t)sample->thread,
                                           .size = 1,
                                           .kind = (uint8_t)kind});
    return VM_LINE_KNOWN;
}

enum vm_line vm_line_perf(struct vm_text *t, const char *line, const char *end)
{
    struct field fields[MAX_FIELDS];
    struct sample sample = {0};
    uint64_t address;
    const char *value;
    int count, kind;

    if (!find_fault(line, end, fields, &count, &sample)) {
        return other_line(line, fields, count);
    }
    if (sample.family == VM_PERF_SOFTWARE || sample.family == VM_PERF_MINOR_MAJOR) {
        if (software_address(sample.rest, end, &address)) {
            return put_fault(t, &sample, address, VM_LOAD);
        }
        t->dropped[VM_PERF_NO_ADDRESS]++;
        return VM_LINE_KNOWN;
    }
    value = find_value(sample.rest, end, "address");
    if (!value) {
        t->dropped[VM_PERF_NO_ADDRESS]++;
        return VM_LINE_KNOWN;
    }
    kind = kind_of(sample.rest, end);
    if (kind < 0) {
        return VM_LINE_UNKNOWN;
    }
    if (sample.family == VM_PERF_KVM ? parse_any_hex(value, &address) != NULL
                                     : vm_parse_0x(value, &address) != NULL) {
        return put_fault(t, &sample, address, kind);
    }
    /* Only what the kernel has a name for is printed as a name, with "%ps". */
    return sample.family == VM_PERF_EXCEPTIONS && value < end
               ? put_fault(t, &sample, KERNEL_HALF, kind)
               : VM_LINE_UNKNOWN;
}
