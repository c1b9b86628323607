/* How an access of a trace is written down; the native trace format has the same columns. */
#ifndef VM_ACCESS_H
#define VM_ACCESS_H

#include <stdint.h>

/*
 * where: index in the page dictionary << VM_PAGE_SHIFT | offset in the page.
 * what:  bits 0-1 enum vm_access_kind, bits 2-7 index in a table of sizes in bytes.
 */
enum { VM_PAGE_SHIFT = 12, VM_PAGE_SIZE = 4096, VM_SIZES = 64 };

enum vm_access_kind { VM_LOAD = 0, VM_STORE = 1, VM_MODIFY = 2, VM_FETCH = 3 };

#endif
