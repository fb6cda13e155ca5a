/*
 * Preloaded into User-Mode Linux 6.1, which keeps 2696 bytes of a process's extended registers. The host's kernel takes them back only whole
 * (arch/x86/kernel/fpu/regset.c, xstateregs_set: EFAULT otherwise), and on processors with AMX the whole is 11008 bytes: there no process
 * of such a node can be started. So what is set is put over the registers as they are, and those are set whole.
 * What lies behind the 2696 bytes is AMX's tiles, which no program has that did not ask the (host's) kernel for them.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long plain(long request, long pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

/* The kernel of a node is one thread. */
static char whole[64 * 1024];

long ptrace(enum __ptrace_request request, ...)
{
	va_list list;
	va_start(list, request);
	pid_t pid = va_arg(list, pid_t);
	void *addr = va_arg(list, void *);
	void *data = va_arg(list, void *);
	va_end(list);

	if (request == PTRACE_SETREGSET && (size_t)addr == NT_X86_XSTATE) {
		struct iovec *part = data, all = { whole, sizeof(whole) };
		if (plain(PTRACE_GETREGSET, pid, addr, &all) == 0 && all.iov_len > part->iov_len) {
			memcpy(whole, part->iov_base, part->iov_len);
			return plain(request, pid, addr, &all);
		}
	}
	/* As glibc's: these give back the word that was read. */
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word, result = plain(request, pid, addr, &word);
		if (result == 0) {
			errno = 0;
			return word;
		}
		return result;
	}
	return plain(request, pid, addr, data);
}
