// Runs the kernels of src/ops/gpu on a CPU; see shim.h.
#define ASFT_SHIM
#include "../common.cuh"
#include "../fragments.cuh"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

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

struct Barrier {
    unsigned arrived = 0, round = 0;
};

struct Warp {
    Barrier barrier;
    // Two, so that a lane may leave its next value while others still read the last.
    alignas(SLOT) unsigned char slots[2][LANES * SLOT];
};

struct Fiber {
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
    void* resume = nullptr;
    unsigned thread = 0;
    bool done = false;
    const Barrier* barrier = nullptr;
    unsigned round = 0;
};

// What this thread runs at present, and what it keeps for the next launch.
struct Machine {
    const Registered* kernel = nullptr;
    void* const* arguments = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> idle, by_thread;
    Fiber* current = nullptr;
    void* scheduler = nullptr;
    Barrier block;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
};
thread_local Machine machine;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "a kernel on the shim: %s\n", what);
    std::abort();
}

void run_fibers() {
    for (;;) {
        machine.kernel->call(machine.kernel->function, machine.arguments);
        machine.current->done = true;
        asft_shim_switch(&machine.current->resume, machine.scheduler);
    }
}

Fiber* take_fiber() {
    if (machine.idle.empty()) {
        machine.fibers.emplace_back(new Fiber);
        Fiber* fiber = machine.fibers.back().get();
        // As if `run_fibers` had been called from a frame aligned to 16 bytes: six registers, the address to return to, and
        // one that is never used.
        uintptr_t top = reinterpret_cast<uintptr_t>(fiber->stack.get() + STACK) & ~uintptr_t{15};
        void** frame = reinterpret_cast<void**>(top) - 8;
        std::memset(frame, 0, 8 * sizeof(void*));
        frame[6] = reinterpret_cast<void*>(&run_fibers);
        fiber->resume = frame;
        machine.idle.push_back(fiber);
    }
    Fiber* fiber = machine.idle.back();
    machine.idle.pop_back();
    return fiber;
}

void wait(Barrier& barrier, unsigned members) {
    if (++barrier.arrived == members) {
        barrier.arrived = 0;
        barrier.round++;
        return;
    }
    Fiber* fiber = machine.current;
    fiber->barrier = &barrier;
    fiber->round = barrier.round;
    asft_shim_switch(&fiber->resume, machine.scheduler);
    fiber->barrier = nullptr;
}

// Runs a thread until it waits or ends; whether it could run.
bool advance(unsigned thread) {
    Fiber*& fiber = machine.by_thread[thread];
    if (!fiber) {
        fiber = take_fiber();
        fiber->thread = thread;
        fiber->done = false;
        fiber->barrier = nullptr;
    } else if (fiber->barrier && fiber->barrier->round == fiber->round) {
        return false;
    }
    threadIdx = {thread, 0, 0};
    machine.current = fiber;
    asft_shim_switch(&machine.scheduler, fiber->resume);
    // A stack that is free serves the next thread: without barriers, one serves them all.
    if (fiber->done) machine.idle.push_back(fiber);
    return true;
}

void run_block(bool backwards) {
    const unsigned threads = blockDim.x;
    machine.by_thread.assign(threads, nullptr);
    machine.block = {};
    for (Warp& warp : machine.warps) warp.barrier = {};
    // NaN in every type.
    std::memset(machine.shared.data(), 0xff, machine.shared.size());
    static thread_local Fiber ended;
    ended.done = true;
    for (unsigned left = threads; left > 0;) {
        bool moved = false;
        for (unsigned i = 0; i < threads; i++) {
            const unsigned thread = backwards ? threads - 1 - i : i;
            if (machine.by_thread[thread] == &ended || !advance(thread)) continue;
            moved = true;
            if (machine.by_thread[thread]->done) {
                machine.by_thread[thread] = &ended;
                left--;
            }
        }
        if (!moved) fail("threads wait at a barrier that others never reach");
    }
}

std::map<std::string, Registered>& registry() {
    static std::map<std::string, Registered> kernels;
    return kernels;
}

}  // namespace

void wait_for_block() { wait(machine.block, blockDim.x); }

const unsigned char* exchange(const void* mine, size_t bytes) {
    if (bytes > SLOT || blockDim.x % LANES != 0) fail("a warp is not whole, or passes on too much");
    Warp& warp = machine.warps[threadIdx.x / LANES];
    unsigned char* slots = warp.slots[warp.barrier.round % 2];
    std::memcpy(slots + threadIdx.x % LANES * SLOT, mine, bytes);
    wait(warp.barrier, LANES);
    return slots;
}

void* dynamic_memory(size_t bytes, size_t alignment) {
    if (bytes != machine.shared.size()) fail("the launch gives a block another size of shared memory than it uses");
    void* start = machine.shared.data();
    if (reinterpret_cast<uintptr_t>(start) % (alignment < 16 ? 16 : alignment) != 0) fail("shared memory is not aligned");
    return start;
}

void Registered::add(const std::string& name) const { registry().emplace(name, *this); }

}  // namespace shim

// Runs the kernel `name`. Returns 0, or 1 if there is none, or 2 if it has another number of arguments.
extern "C" int asft_shim_launch(const char* name, const unsigned* grid, unsigned block, size_t shared,
                                void* const* arguments, unsigned count, bool backwards) {
    shim::add_metal();
    const auto found = shim::registry().find(name);
    if (found == shim::registry().end()) return 1;
    if (found->second.count != count) return 2;
    shim::machine.kernel = &found->second;
    std::vector<void*> all(arguments, arguments + count);
    all.insert(all.end(), {&threadIdx, &blockIdx, &blockDim, &gridDim});
    shim::machine.arguments = all.data();
    shim::machine.shared.resize(shared);
    shim::machine.warps.resize((block + shim::LANES - 1) / shim::LANES);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block, 1, 1};
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                shim::run_block(backwards);
            }
        }
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
