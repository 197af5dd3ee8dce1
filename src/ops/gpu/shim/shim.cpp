// Runs the kernels of src/ops/gpu on a CPU; see shim.h.
#define ASFT_SHIM
#include "../common.cuh"
#include "../fragments.cuh"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

__thread Dim3 threadIdx, blockIdx, blockDim, gridDim;

// Exchanges stacks: saves the registers that a call must keep, and where they are, in *from; continues at `to`.
#if defined(__x86_64__)
extern "C" void asft_shim_switch(void** from, void* to);
asm(R"(
.text
.globl asft_shim_switch
.type asft_shim_switch, @function
asft_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size asft_shim_switch, .-asft_shim_switch
)");
#else
#error "the shim knows how to exchange stacks on x86_64 only"
#endif

namespace shim {
namespace {

constexpr size_t STACK = 128 << 10;
// How far the stacks' beginnings differ within a page: were they all alike, they would share a few lines of the CPU's caches.
constexpr size_t STAGGER = 9 * 64, STAGGERED = 14;

struct Barrier {
    unsigned arrived = 0, round = 0;
};

struct Warp {
    Barrier barrier;
    // Two, so that a lane may leave its next value while others still read the last.
    alignas(SLOT) unsigned char slots[2][LANES * SLOT];
};

struct Fiber {
    std::unique_ptr<unsigned char[]> stack;
    void* resume = nullptr;
    unsigned thread = 0;
    const Barrier* barrier = nullptr;
    unsigned round = 0;
};

// What this thread runs at present, and what it keeps for the next launch.
struct Machine {
    const Registered* kernel = nullptr;
    void* const* arguments = nullptr;
    bool backwards = false;
    std::vector<std::unique_ptr<Fiber>> fibers;
    // Of a block's threads: none where a thread has not begun, `ended` where it is done.
    std::vector<Fiber*> idle, by_thread;
    Fiber* current = nullptr;
    unsigned left = 0;
    void* launch = nullptr;
    Barrier block;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
};
// The thread's own. By a plain pointer: each use of a thread-local with a constructor would first ask whether it has run.
__thread Machine* machine = nullptr;
// In place of the fiber of a thread that has ended.
Fiber ended;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "a kernel on the shim: %s\n", what);
    std::abort();
}

void run_fibers();

Fiber* take_fiber() {
    if (machine->idle.empty()) {
        const size_t before = machine->fibers.size() % STAGGERED * STAGGER;
        machine->fibers.emplace_back(new Fiber);
        Fiber* fiber = machine->fibers.back().get();
        fiber->stack.reset(new unsigned char[STACK]);
        // As if `run_fibers` had been called from a frame aligned to 16 bytes: six registers, the address to return to, and
        // one that is never used.
        uintptr_t top = reinterpret_cast<uintptr_t>(fiber->stack.get() + STACK - before) & ~uintptr_t{15};
        void** frame = reinterpret_cast<void**>(top) - 8;
        std::memset(frame, 0, 8 * sizeof(void*));
        frame[6] = reinterpret_cast<void*>(&run_fibers);
        fiber->resume = frame;
        machine->idle.push_back(fiber);
    }
    Fiber* fiber = machine->idle.back();
    machine->idle.pop_back();
    return fiber;
}

// Has a thread that has not begun run on a fiber.
void begin(unsigned thread, Fiber* fiber) {
    machine->by_thread[thread] = fiber;
    fiber->thread = thread;
    fiber->barrier = nullptr;
}

// The next thread, in turn after `thread`, that does not wait. Not for the last one of a block.
unsigned next(unsigned thread) {
    const unsigned threads = blockDim.x;
    for (unsigned i = 0; i < threads; i++) {
        if (machine->backwards) {
            thread = (thread == 0 ? threads : thread) - 1;
        } else {
            thread = thread + 1 == threads ? 0 : thread + 1;
        }
        const Fiber* fiber = machine->by_thread[thread];
        if (!fiber || (fiber != &ended && (!fiber->barrier || fiber->barrier->round != fiber->round))) return thread;
    }
    fail("threads wait at a barrier that others never reach");
}

// Goes on with a thread, on its own stack; what runs now is continued from *from.
void turn_to(unsigned thread, void** from) {
    if (!machine->by_thread[thread]) begin(thread, take_fiber());
    machine->current = machine->by_thread[thread];
    threadIdx = {thread, 0, 0};
    asft_shim_switch(from, machine->current->resume);
}

// What a fiber does: thread after thread. A stack that is free serves the next one: without barriers, one serves them all.
void run_fibers() {
    for (;;) {
        machine->kernel->call(machine->kernel->function, machine->arguments);
        Fiber* fiber = machine->current;
        machine->by_thread[fiber->thread] = &ended;
        if (--machine->left == 0) {
            machine->idle.push_back(fiber);
            asft_shim_switch(&fiber->resume, machine->launch);
            continue;
        }
        const unsigned thread = next(fiber->thread);
        if (machine->by_thread[thread]) {
            machine->idle.push_back(fiber);
            turn_to(thread, &fiber->resume);
        } else {
            begin(thread, fiber);
            threadIdx = {thread, 0, 0};
        }
    }
}

void wait(Barrier& barrier, unsigned members) {
    if (++barrier.arrived == members) {
        barrier.arrived = 0;
        barrier.round++;
        return;
    }
    Fiber* fiber = machine->current;
    fiber->barrier = &barrier;
    fiber->round = barrier.round;
    turn_to(next(fiber->thread), &fiber->resume);
    fiber->barrier = nullptr;
}

void run_block() {
    machine->left = blockDim.x;
    machine->by_thread.assign(blockDim.x, nullptr);
    machine->block = {};
    for (Warp& warp : machine->warps) warp.barrier = {};
    // NaN in every type.
    std::memset(machine->shared.data(), 0xff, machine->shared.size());
    turn_to(machine->backwards ? blockDim.x - 1 : 0, &machine->launch);
}

std::map<std::string, Registered>& registry() {
    static std::map<std::string, Registered> kernels;
    return kernels;
}

}  // namespace

void wait_for_block() { wait(machine->block, blockDim.x); }

const unsigned char* exchange(const void* mine, size_t bytes) {
    if (bytes > SLOT || blockDim.x % LANES != 0) fail("a warp is not whole, or passes on too much");
    Warp& warp = machine->warps[threadIdx.x / LANES];
    unsigned char* slots = warp.slots[warp.barrier.round % 2];
    std::memcpy(slots + threadIdx.x % LANES * SLOT, mine, bytes);
    wait(warp.barrier, LANES);
    return slots;
}

void* dynamic_memory(size_t bytes, size_t alignment) {
    if (bytes != machine->shared.size()) fail("the launch gives a block another size of shared memory than it uses");
    void* start = machine->shared.data();
    if (reinterpret_cast<uintptr_t>(start) % (alignment < 16 ? 16 : alignment) != 0) fail("shared memory is not aligned");
    return start;
}

void Registered::add(const std::string& name) const { registry().emplace(name, *this); }

}  // namespace shim

// Runs the blocks from `first` up to `end` of the kernel `name`, counted along x, then y, then z. Returns 0, or 1 if there is no
// such kernel, or 2 if it has another number of arguments.
extern "C" int asft_shim_launch(const char* name, const unsigned* grid, size_t first, size_t end, unsigned block, size_t shared,
                                void* const* arguments, unsigned count, bool backwards) {
    shim::add_metal();
    const auto found = shim::registry().find(name);
    if (found == shim::registry().end()) return 1;
    if (found->second.count != count) return 2;
    static thread_local shim::Machine own;
    shim::machine = &own;
    own.kernel = &found->second;
    std::vector<void*> all(arguments, arguments + count);
    all.insert(all.end(), {&threadIdx, &blockIdx, &blockDim, &gridDim});
    own.arguments = all.data();
    own.backwards = backwards;
    own.shared.resize(shared);
    own.warps.resize((block + shim::LANES - 1) / shim::LANES);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block, 1, 1};
    for (size_t i = first; i < end; i++) {
        blockIdx = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]), unsigned(i / grid[0] / grid[1])};
        shim::run_block();
    }
    return 0;
}

namespace f32 {
using T = float;
constexpr const char* TYPE_NAME = "f32";
#include "kernels.inc"

// The form that products of f32 take on a GPU, beside the one above: c, and then the other c, [16, 8] each.
KERNEL(multiply_both_ways, const float* a, const float* b, float* c) {
    FragmentC exact = {}, shuffled = {};
    multiply(exact, rows_as_a(a, 16), rows_as_b(b, 16));
    multiply_by_shuffles(shuffled, rows_as_a(a, 16), rows_as_b(b, 16));
    for (unsigned e = 0; e < 4; e++) {
        const unsigned at = (lane_row() + e / 2 * 8) * 8 + lane_pair() + e % 2;
        c[at] = exact.v[e];
        c[128 + at] = shuffled.v[e];
    }
}
}  // namespace f32
namespace bf16 {
using T = __nv_bfloat16;
constexpr const char* TYPE_NAME = "bf16";
#include "kernels.inc"
}  // namespace bf16
namespace f16 {
using T = __half;
constexpr const char* TYPE_NAME = "f16";
#include "kernels.inc"
}  // namespace f16
