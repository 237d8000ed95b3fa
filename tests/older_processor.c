/* Hides AVX-512, VNNI, 16-bit floats and AMX from a process: LD_PRELOAD it, and libraries see a processor with AVX2.

   Libraries ask the processor by the instruction CPUID. Linux can make it fail (arch_prctl, where the flag cpuid_fault
   stands in /proc/cpuinfo); the signal's handler then gives the processor's own answer without those bits. Threads and
   child processes inherit it. A program that handles SIGSEGV itself must not be started with it. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(number) (1u << (number))

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
  uint32_t leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
  (void)info;
  if (instruction[0] != 0x0f || instruction[1] != 0xa2) { /* not CPUID: a true fault, which comes again */
    signal(number, SIG_DFL);
    return;
  }
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(part));
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  if (leaf == 7 && part == 0) {
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                  /* AVX-512, VNNI */
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));               /* AVX-512, AMX */
  }
  if (leaf == 7 && part == 1) {
    a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));                      /* AVX-VNNI, BF16, AMX-FP16, AVX-IFMA */
    d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19) | BIT(21)); /* more of AVX-VNNI, AMX, AVX10, APX */
  }
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
  static const char refusal[] = "older_processor: CPUID cannot be made to fail here\n";
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, 0);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) && write(2, refusal, sizeof refusal - 1) < 0) _exit(1);
}
