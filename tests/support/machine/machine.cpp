// Runs a kernel as a GPU would: blocks one after the other, in each all warps up to the barrier.
//
// The lanes of a warp that stand at the same operation do it together.  Of those that stand apart
// the hindmost go first, so that they meet again where the ways join.

#include "accesses.h"

#include <utility>
#include <vector>

namespace machine {
namespace {

// Names that are no handlers: they decide which operation comes next.
enum Flow : int { BRANCH, EXIT, BARRIER, FLOWS };
const char *const FLOW_NAMES[FLOWS] = {"bra", "exit", "bar.sync"};

struct Named {
    std::string name;
    Handler run;
};

const std::vector<Named> &handlers() {
    static const std::vector<Named> all = [] {
        Table table;
        add_integers<true>(table, ".s");
        add_integers<false>(table, ".u");
        add_bits(table);
        add_pairs(table);
        add_reals<float>(table, ".f32");
        add_reals<double>(table, ".f64");
        add_conversions(table);
        add_accesses(table);
        std::vector<Named> listed;
        for (const char *name : FLOW_NAMES)
            listed.push_back({name, nullptr});
        for (const auto &[name, run] : table)
            listed.push_back({name, run});
        return listed;
    }();
    return all;
}

enum PresetKind : int { CONSTANT, TID_X, TID_Y, TID_Z, CTAID_X, CTAID_Y, CTAID_Z, LANEID, WARPID };

}  // namespace

// A register that holds something before the kernel starts.
struct Preset {
    int reg, kind;
    u64 value;
};

struct Allocation {
    u64 address, size;
    u8 *undefined;
    int writable;
};

// As in ptx.py.
struct Launch {
    const Operation *operations;
    const Preset *presets;
    const Allocation *global, *shared;
    u64 *thread_counts, *warp_counts, *wavefronts;  // by operation
    u64 most_operations;                            // of a warp
    int n_operations, n_presets, n_global, n_shared;
    int registers, local_bytes;
    int blocks[3], threads[3];
};

static_assert(sizeof(Preset) == 16 && sizeof(Allocation) == 32 && sizeof(Launch) == 112 &&
                  sizeof(Fault) == 32,
              "as ptx.py has them");

namespace {

class Block {
  public:
    explicit Block(const Launch &launch) : launch_(launch) {
        threads_ = launch.threads[0] * launch.threads[1] * launch.threads[2];
        for (int n = 0; n < launch.n_global; ++n) {
            const Allocation &a = launch.global[n];
            memory_.global.add({a.address, a.size, reinterpret_cast<u8 *>(a.address), a.undefined,
                                a.writable != 0, true, true});
        }
        for (int n = 0; n < launch.n_shared; ++n) {
            const Allocation &a = launch.shared[n];
            memory_.shared.add(
                {a.address, a.size, bytes(a.size), bytes(a.size), true, false, true});
        }
        const auto local = static_cast<u64>(launch.local_bytes);
        for (int t = 0; t < threads_; ++t)
            memory_.local.emplace_back(0, local, bytes(local), bytes(local), true, false, false);
        for (int w = 0; w * LANES < threads_; ++w) {
            warps_.emplace_back(w, launch.registers);
            warps_.back().memory = &memory_;
        }
        memory_.clock.one_warp = threads_ <= LANES;
        at_.resize(static_cast<std::size_t>(threads_));
        state_.resize(at_.size());
    }

    void run(int x, int y, int z) {
        memory_.begin_block();
        std::fill(at_.begin(), at_.end(), 0);
        std::fill(state_.begin(), state_.end(), RUNS);
        for (Warp &warp : warps_) {
            const int lanes = std::min(LANES, threads_ - warp.index * LANES);
            warp.existing = lanes == LANES ? ~0u : (1u << lanes) - 1;
            warp.forget();
            preset(warp, x, y, z);
        }
        do
            for (Warp &warp : warps_)
                run_to_barrier(warp);
        while (pass_barrier());
        if (memory_.pending.kind != FaultKind::NONE)
            throw memory_.pending;
    }

    // What to say of a fault that ended a block.
    Fault completed(Fault fault) const {
        if (fault.kind != FaultKind::RACE && memory_.pending.kind != FaultKind::NONE)
            return memory_.pending;
        fault.operation = operation_;
        return fault;
    }

  private:
    enum State : char { RUNS, WAITS, ENDED };

    u8 *bytes(u64 size) { return bytes_.emplace_back(size).data(); }

    void preset(Warp &warp, int x, int y, int z) {
        const int *size = launch_.threads;
        warp.active = warp.existing;
        for (int n = 0; n < launch_.n_presets; ++n) {
            const Preset &p = launch_.presets[n];
            warp.for_active([&](int lane) {
                const int t = warp.thread(lane);
                const int special[] = {
                    0,    t % size[0], t / size[0] % size[1], t / size[0] / size[1], x, y, z,
                    lane, warp.index};
                warp.set(p.reg, lane,
                         p.kind == CONSTANT ? p.value : static_cast<u64>(special[p.kind]), 0);
            });
        }
    }

    // Lanes that stand hindmost, where they stand, and where the next of the others do.
    struct Group {
        LaneMask lanes = 0;
        int at = 1 << 30, next = 1 << 30;
    };
    Group hindmost(const Warp &warp) const {
        Group group;
        for (LaneMask rest = warp.existing; rest; rest &= rest - 1) {
            const int lane = std::countr_zero(rest);
            const auto t = static_cast<std::size_t>(warp.thread(lane));
            if (state_[t] != RUNS)
                continue;
            if (at_[t] < group.at) {
                group.next = group.at;
                group.at = at_[t];
                group.lanes = 0;
            }
            if (at_[t] == group.at)
                group.lanes |= 1u << lane;
            else
                group.next = std::min(group.next, at_[t]);
        }
        return group;
    }

    void run_to_barrier(Warp &warp) {
        const auto put = [&](LaneMask lanes, int at, State state) {
            for (; lanes; lanes &= lanes - 1) {
                const auto t = static_cast<std::size_t>(warp.thread(std::countr_zero(lanes)));
                at_[t] = at;
                state_[t] = state;
                if (state == ENDED)
                    warp.existing &= ~(lanes & (0u - lanes));
            }
        };
        u64 issued = 0;
        for (Group group = hindmost(warp); group.lanes; group = hindmost(warp)) {
            int at = group.at;
            LaneMask lanes = group.lanes;
            while (lanes && at < group.next) {
                const Operation &op = launch_.operations[operation_ = at];
                const LaneMask doing = op.guard < 0 ? lanes : lanes & guarded(warp, op, lanes);
                ++launch_.warp_counts[at];
                launch_.thread_counts[at] += static_cast<u64>(std::popcount(doing));
                if (++issued > launch_.most_operations)
                    throw Fault{.kind = FaultKind::ENDLESS, .thread = first_thread(warp, lanes)};
                ++at;
                warp.active = doing;
                if (op.handler == EXIT) {
                    put(doing, at, ENDED);
                    lanes &= ~doing;
                } else if (op.handler == BARRIER) {
                    put(doing, at, WAITS);
                    lanes &= ~doing;
                } else if (op.handler == BRANCH) {
                    if (doing == lanes) {
                        at = op.target;
                    } else if (doing) {
                        put(doing, op.target, RUNS);
                        lanes &= ~doing;
                        group.next = std::min(group.next, op.target);
                    }
                } else if (doing) {
                    handlers()[static_cast<std::size_t>(op.handler)].run(warp, op);
                    launch_.wavefronts[operation_] += std::exchange(memory_.wavefronts, 0);
                    if (memory_.pending.operation < 0)
                        memory_.pending.operation = operation_;
                }
            }
            put(lanes, at, RUNS);
        }
    }

    static LaneMask guarded(Warp &warp, const Operation &op, LaneMask lanes) {
        if (const LaneMask unknown = warp.partly(op.guard) & lanes)
            throw Fault{.kind = FaultKind::UNDEFINED_BRANCH, .thread = first_thread(warp, unknown)};
        LaneMask result = 0;
        const u64 *const p = warp.value(op.guard);
        for (int l = 0; l < LANES; ++l)
            result |= static_cast<LaneMask>((p[l] & 1) == static_cast<u64>(op.guard_value)) << l;
        return result;
    }

    static int first_thread(const Warp &warp, LaneMask lanes) {
        return warp.thread(std::countr_zero(lanes));
    }

    // Whether any thread goes on.  All must wait at the same barrier, or none.
    bool pass_barrier() {
        const auto find = [&](auto is) {
            return static_cast<int>(std::find_if(state_.begin(), state_.end(), is) -
                                    state_.begin());
        };
        const int waits = find([](State s) { return s == WAITS; });
        if (waits == threads_)
            return false;
        const int place = at_[static_cast<std::size_t>(waits)];
        operation_ = place - 1;
        for (int t = 0; t < threads_; ++t) {
            const auto n = static_cast<std::size_t>(t);
            if (state_[n] == ENDED || at_[n] != place)
                throw Fault{.kind = FaultKind::DIVERGENT_BARRIER, .thread = waits, .other = t};
        }
        std::fill(state_.begin(), state_.end(), RUNS);
        memory_.clock.pass_barrier();
        return true;
    }

    const Launch &launch_;
    int threads_, operation_ = 0;
    Memory memory_;
    std::vector<std::vector<u8>> bytes_;
    std::vector<Warp> warps_;
    std::vector<int> at_;  // by thread: its next operation
    std::vector<State> state_;
};

}  // namespace
}  // namespace machine

extern "C" {

// Which handler does operations of this name; -1 where none does.
int machine_find(const char *name) {
    const auto &all = machine::handlers();
    for (std::size_t n = 0; n < all.size(); ++n)
        if (all[n].name == name)
            return static_cast<int>(n);
    return -1;
}

// Runs the blocks first … last - 1; returns the first fault found.
machine::Fault machine_run(const machine::Launch *launch) {
    machine::Fault none{.kind = machine::FaultKind::NONE};
    machine::Block block(*launch);
    const int *grid = launch->blocks;
    int index = 0;
    try {
        for (int z = 0; z < grid[2]; ++z)
            for (int y = 0; y < grid[1]; ++y)
                for (int x = 0; x < grid[0]; ++x, ++index)
                    block.run(x, y, z);
    } catch (machine::Fault &fault) {
        fault = block.completed(fault);
        fault.block = index;
        return fault;
    }
    return none;
}

}  // extern "C"
