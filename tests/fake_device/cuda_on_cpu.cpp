// The CPU as a GPU: runs the threads of a block as fibers, and judges every access to memory.
//
// Found in a launch, whatever the order of the threads:
// - an access outside the kernel's arguments and shared memory, and one that is not aligned to its size;
// - two threads of a block that touch the same word, one of them writing, with no barrier between them. A block barrier
//   orders all threads of the block, a warp barrier those of the warp; a shuffle orders nothing in memory;
// - two blocks that touch the same word, one of them writing;
// - a barrier that some threads of the block never reach, or reach in another line.
//
// Shared memory starts each block as NaN, so reading it before writing it shows in the result.

#include "cuda_on_cpu.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" {
Coordinates threadIdx, blockIdx, blockDim, gridDim;
// AddressSanitizer's, where the kernels were compiled for it: then no hook is called, and arrays have gaps between them
void __asan_unpoison_memory_region(const volatile void* address, std::size_t size) __attribute__((weak));
// the linker's names of the section's ends; a kernel without shared memory has no such section
extern char __start_shared_memory[] __attribute__((weak));
extern char __stop_shared_memory[] __attribute__((weak));
}

namespace {

constexpr int WARP = 32;
constexpr std::size_t STACK = 1 << 17;  // bytes for one thread; only touched pages take memory

enum class State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, AT_SHUFFLE, DONE };

struct Fiber {
    State state;
    int line;              // of the barrier where it waits
    unsigned mask;         // of the warp barrier where it waits
    int block_epoch;       // block barriers passed
    int warp_epoch;        // warp barriers passed
    char* stack;
    unsigned char given[16];  // what it gives in a shuffle
#if defined(__x86_64__)
    void* pointer;  // of its stack, while it does not run
#else
    ucontext_t context;
#endif
};

constexpr std::size_t SHARED_WORD = 4;  // bytes of the smallest number in shared memory

// Who touched a word last. A thread is numbered within its block; MANY stands for several. A block is numbered within its
// launch, for shared memory among those of all launches: so its words need not be cleared between two blocks.
constexpr int NOBODY = -1, MANY = -2;
struct Touch {
    int block = NOBODY, thread = NOBODY, warp = NOBODY, block_epoch = 0, warp_epoch = 0;
};
struct Word {
    Touch write, read;
};

struct Region {
    const char *low, *high;
    bool writable;
    std::size_t word;         // bytes of the smallest number that threads side by side may write
    Word* shared;             // the words of shared memory
    std::vector<Word> words;  // of an argument that is written
};

std::vector<Fiber> fibers;
std::vector<char*> stacks;
std::vector<Region> regions;  // static shared memory, dynamic shared memory, then the kernel's arguments
std::vector<double> dynamic_shared;
std::vector<Word> static_words, dynamic_words;  // of shared memory
int running = NOBODY, block_number = 0, block_of_all = 0;
void (*entry)(void*);
void* entry_closure;
char message[512];
const char* main_stack;

#if defined(__x86_64__)
void* scheduler;
extern "C" void cuda_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_switch
.hidden cuda_switch
cuda_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
void to_scheduler() { cuda_switch(&fibers[running].pointer, scheduler); }
void to_fiber(Fiber& fiber) { cuda_switch(&scheduler, fiber.pointer); }
#else
ucontext_t scheduler;
void to_scheduler() { swapcontext(&fibers[running].context, &scheduler); }
void to_fiber(Fiber& fiber) { swapcontext(&scheduler, &fiber.context); }
#endif

[[noreturn]] void body() {
    entry(entry_closure);
    fibers[running].state = State::DONE;
    to_scheduler();
    __builtin_unreachable();
}

void prepare(Fiber& fiber, char* stack) {
    fiber = Fiber{};
    fiber.state = State::READY;
    fiber.stack = stack;
    if (__asan_unpoison_memory_region) {
        __asan_unpoison_memory_region(stack, STACK);  // of the thread that was here before
    }
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + STACK) - 1;  // aligned as a call leaves it
    *--top = reinterpret_cast<void*>(body);
    fiber.pointer = top - 6;  // the six registers that are popped
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(body), 0);
#endif
}

void place(int thread) {
    threadIdx.x = thread % blockDim.x;
    threadIdx.y = thread / blockDim.x % blockDim.y;
    threadIdx.z = thread / blockDim.x / blockDim.y;
}

// The first error ends the launch: the fiber never goes on.
void fail(const char* format, ...) {
    if (!message[0]) {
        int used = std::snprintf(message, sizeof message, "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x,
                                 blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(message + used, sizeof message - used, format, arguments);
        va_end(arguments);
    }
    if (running != NOBODY) {
        to_scheduler();
    }
}

bool ordered(const Touch& before, const Fiber& now, bool shared) {
    if (before.block != (shared ? block_of_all : block_number)) {
        return shared || before.block == NOBODY;  // each block has its own shared memory
    }
    if (before.thread == running || before.block_epoch < now.block_epoch) {
        return true;
    }
    return before.warp == running / WARP && before.warp_epoch < now.warp_epoch;
}

void touch(const char* address, std::size_t size, bool write) {
    if (running == NOBODY || message[0]) {
        return;
    }
    Fiber& now = fibers[running];
    if (address >= now.stack && address < now.stack + STACK) {
        return;
    }
    for (Region& region : regions) {
        if (address < region.low || address >= region.high) {
            continue;
        }
        if (address + size > region.high) {
            break;
        }
        if (reinterpret_cast<std::uintptr_t>(address) % std::min(size & -size, std::size_t(16))) {
            return fail("an access of %zu bytes is not aligned", size);
        }
        if (write && !region.writable) {
            return fail("writes into an array that is only to be read");
        }
        if (!region.writable) {
            return;  // nobody writes it, so there is no race in it
        }
        const bool shared = region.shared != nullptr;
        const int block = shared ? block_of_all : block_number;
        Word* words = shared ? region.shared : region.words.data();
        for (std::size_t at = (address - region.low) / region.word, end = (address - region.low + size - 1) / region.word;
             at <= end; ++at) {
            Word& word = words[at];
            if (!ordered(word.write, now, shared) || (write && !ordered(word.read, now, shared))) {
                const Touch& other = ordered(word.write, now, shared) ? word.read : word.write;
                return fail("race in %s memory: %s byte %td, which block %d, thread %d touched with no barrier between",
                            shared ? "shared" : "global", write ? "writes" : "reads", address - region.low,
                            shared ? block_number : other.block, other.thread);
            }
            Touch mine{block, running, running / WARP, now.block_epoch, now.warp_epoch};
            if (write) {
                word.write = mine;
                word.read = Touch{};
            } else {
                // readers since the last write; of several, what they have in common
                Touch& read = word.read;
                if (read.block != NOBODY && read.block != block && !shared) {
                    mine.block = MANY;
                } else if (read.block == block && read.thread != running &&
                           read.block_epoch == now.block_epoch) {
                    mine.thread = MANY;
                    mine.warp = read.warp == mine.warp ? mine.warp : MANY;
                    mine.warp_epoch = std::max(read.warp_epoch, mine.warp_epoch);
                }
                read = mine;
            }
        }
        return;
    }
    const char* globals = reinterpret_cast<const char*>(&threadIdx);
    if (std::abs(address - main_stack) < (1 << 16) || std::abs(address - globals) < 256) {
        return;
    }
    fail("%s %zu bytes outside of all arrays", write ? "writes" : "reads", size);
}

void wait(State state, unsigned mask, int line) {
    if (running == NOBODY) {
        return;
    }
    Fiber& fiber = fibers[running];
    fiber.state = state;
    fiber.mask = mask;
    fiber.line = line;
    to_scheduler();
}

// Lets the lanes of each warp whose barrier is complete go on; returns whether there were any.
bool release_warps() {
    bool any = false;
    for (std::size_t first = 0; first < fibers.size(); first += WARP) {
        int leader = NOBODY;
        for (int lane = 0; lane < WARP && leader == NOBODY; ++lane) {
            const State state = fibers[first + lane].state;
            if (state == State::AT_WARP_BARRIER || state == State::AT_SHUFFLE) {
                leader = lane;
            }
        }
        if (leader == NOBODY) {
            continue;
        }
        const Fiber expected = fibers[first + leader];
        bool complete = true;
        for (int lane = 0; lane < WARP; ++lane) {
            const Fiber& fiber = fibers[first + lane];
            if (expected.mask >> lane & 1) {
                complete = complete && fiber.state == expected.state && fiber.line == expected.line &&
                           fiber.mask == expected.mask;
            }
        }
        for (int lane = 0; complete && lane < WARP; ++lane) {
            if (expected.mask >> lane & 1) {
                fibers[first + lane].state = State::READY;
                fibers[first + lane].warp_epoch += expected.state == State::AT_WARP_BARRIER;
                any = true;
            }
        }
    }
    return any;
}

bool release_block() {
    for (const Fiber& fiber : fibers) {
        if (fiber.state != State::AT_BLOCK_BARRIER || fiber.line != fibers[0].line) {
            return false;
        }
    }
    for (Fiber& fiber : fibers) {
        fiber.state = State::READY;
        ++fiber.block_epoch;
    }
    return true;
}

void run_block(std::vector<int>& order, bool warp_by_warp) {
    ++block_of_all;
    for (Region* shared : {&regions[0], &regions[1]}) {
        for (char* at = const_cast<char*>(shared->low); at < shared->high; ++at) {
            *at = char(0xff);  // NaN
        }
    }
    for (std::size_t thread = 0; thread < fibers.size(); ++thread) {
        prepare(fibers[thread], stacks[thread]);
    }
    for (;;) {
        bool ran = false;
        for (int thread : order) {
            if (fibers[thread].state != State::READY) {
                continue;
            }
            ran = true;
            running = thread;
            place(thread);
            to_fiber(fibers[thread]);
            running = NOBODY;
            if (message[0]) {
                return;
            }
            if (warp_by_warp && release_warps()) {
                break;  // one warp runs as far as it can before the next begins
            }
        }
        if (ran && warp_by_warp) {
            continue;
        }
        if (release_warps() || release_block()) {
            continue;
        }
        if (std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.state == State::DONE; })) {
            return;
        }
        for (std::size_t thread = 0; thread < fibers.size(); ++thread) {
            if (fibers[thread].state != State::DONE) {
                place(thread);
                return fail("waits at a barrier in line %d that other threads of its block or warp never reach",
                            fibers[thread].line);
            }
        }
    }
}

}  // namespace

extern "C" {

// An argument of the next launch, of `item` bytes a number; shared memory is added by the launch itself.
void cuda_register(const char* low, std::size_t size, std::size_t item, int writable) {
    for (Region& region : regions) {  // one array for two arguments: what either may do
        if (region.low == low && region.high == low + size) {
            region.writable |= writable != 0;
            region.word = std::min(region.word, item);
            return;
        }
    }
    regions.push_back(Region{low, low + size, writable != 0, item, nullptr, {}});
}

void cuda_block_barrier(int line) { wait(State::AT_BLOCK_BARRIER, 0, line); }

static void wait_for_lanes(State state, unsigned mask, int line) {
    if (!(mask >> (running % WARP) & 1)) {
        return fail("is not in the mask of its own warp in line %d", line);
    }
    wait(state, mask, line);
}

void cuda_warp_barrier(unsigned mask, int line) { wait_for_lanes(State::AT_WARP_BARRIER, mask, line); }

void cuda_exchange(unsigned mask, void* value, std::size_t size, int source, int line) {
    std::memcpy(fibers[running].given, value, size);
    wait_for_lanes(State::AT_SHUFFLE, mask, line);
    if (source < 0 || source >= WARP || !(mask >> source & 1)) {
        return fail("shuffles from lane %d, which is not in the mask", source);
    }
    std::memcpy(value, fibers[running / WARP * WARP + source].given, size);
    wait_for_lanes(State::AT_SHUFFLE, mask, line);
}

void* cuda_dynamic_shared() { return dynamic_shared.data(); }

// `dynamic`: bytes of dynamic shared memory. Order: 0 upward, 1 downward, 2 random, 3 warp by warp. Returns an error, or
// null.
const char* cuda_launch(void (*call)(void*), void* closure, const unsigned* grid, const unsigned* block, unsigned dynamic,
                        int order, unsigned seed) {
    char here;
    main_stack = &here;
    message[0] = 0;
    entry = call;
    entry_closure = closure;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    std::size_t threads = std::size_t(block[0]) * block[1] * block[2];
    std::size_t blocks = std::size_t(grid[0]) * grid[1] * grid[2];
    std::size_t shared = __start_shared_memory ? __stop_shared_memory - __start_shared_memory : 0;
    dynamic_shared.resize(dynamic / sizeof(double) + 1);
    const char* given = reinterpret_cast<const char*>(dynamic_shared.data());
    static_words.resize(std::max(static_words.size(), shared / SHARED_WORD + 1));
    dynamic_words.resize(std::max<std::size_t>(dynamic_words.size(), dynamic / SHARED_WORD + 1));
    regions.insert(regions.begin(),
                   {Region{__start_shared_memory, __start_shared_memory + shared, true, SHARED_WORD, static_words.data(), {}},
                    Region{given, given + dynamic, true, SHARED_WORD, dynamic_words.data(), {}}});
    if (threads == 0 || threads > 1024 || threads % WARP || blocks == 0 || grid[1] > 65535 || grid[2] > 65535) {
        std::snprintf(message, sizeof message, "a block has %zu threads and the grid %zu blocks: take whole warps", threads,
                      blocks);
    } else if (!__asan_unpoison_memory_region && (shared > 48 * 1024 || shared + dynamic > 99 * 1024)) {
        std::snprintf(message, sizeof message,
                      "%zu bytes of static and %u of dynamic shared memory: every card of compute capability 8 and more "
                      "has 49,152 and 101,376 in all",
                      shared, dynamic);
    }
    for (Region& region : regions) {
        if (region.writable && !region.shared) {
            region.words.resize((region.high - region.low) / region.word + 1);
        }
    }
    while (stacks.size() < threads) {
        stacks.push_back(static_cast<char*>(
            mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
    }
    fibers.resize(threads);
    std::vector<int> sequence(threads), block_sequence(message[0] ? 0 : blocks);
    std::iota(sequence.begin(), sequence.end(), 0);
    std::iota(block_sequence.begin(), block_sequence.end(), 0);
    std::mt19937 random(seed);
    if (order == 1) {
        std::reverse(sequence.begin(), sequence.end());
        std::reverse(block_sequence.begin(), block_sequence.end());
    }
    for (int number : block_sequence) {
        if (order == 2) {
            std::shuffle(sequence.begin(), sequence.end(), random);
        }
        block_number = number;
        blockIdx = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
        run_block(sequence, order == 3);
        if (message[0]) {
            break;
        }
    }
    regions.clear();
    return message[0] ? message : nullptr;
}

// what -fsanitize=thread calls
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define HOOKS(SIZE)                                                                                                    \
    void __tsan_read##SIZE(void* address) { touch(static_cast<const char*>(address), SIZE, false); }                   \
    void __tsan_write##SIZE(void* address) { touch(static_cast<const char*>(address), SIZE, true); }                   \
    void __tsan_unaligned_read##SIZE(void* address) { touch(static_cast<const char*>(address), SIZE, false); }         \
    void __tsan_unaligned_write##SIZE(void* address) { touch(static_cast<const char*>(address), SIZE, true); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, std::size_t size) { touch(static_cast<const char*>(address), size, false); }
void __tsan_write_range(void* address, std::size_t size) { touch(static_cast<const char*>(address), size, true); }
}
