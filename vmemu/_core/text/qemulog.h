/* What the reader of QEMU's log says to its line function, and is told by it: struct
 * vm_text.memory. */
#ifndef VM_TEXT_QEMULOG_H
#define VM_TEXT_QEMULOG_H

enum {
    VM_QEMU_LOG_TIMED,   /* option: a fault counts only with a time stamp */
    VM_QEMU_LOG_USED,    /* which events are the faults; 0 until the first decides */
    VM_QEMU_LOG_THREADS, /* faults that name a thread or a vCPU */
};

/* Both are logged for one fault, so only one kind may count. */
enum { VM_QEMU_LOG_REQUESTS = 1, VM_QEMU_LOG_BEGINS };

#endif
