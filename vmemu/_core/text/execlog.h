/* What the reader of execlog says to its line function, and is told by it: struct vm_text.memory.
 */
#ifndef VM_TEXT_EXECLOG_H
#define VM_TEXT_EXECLOG_H

enum { VM_EXECLOG_SPACE }; /* which addresses count; 0 until the first access decides */

enum { VM_EXECLOG_PHYSICAL = 1, VM_EXECLOG_VIRTUAL };

#endif
