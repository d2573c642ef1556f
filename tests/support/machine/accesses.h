// Loads and stores, and what the lanes of a warp exchange.

#ifndef CTGPU_TESTS_ACCESSES_H
#define CTGPU_TESTS_ACCESSES_H

#include "instructions.h"

namespace machine {

// ---- Memory ------------------------------------------------------------------------------------

// Passes in which shared memory serves a warp's access: each of its banks gives one word a pass, to
// all lanes that ask for it, and consecutive words lie in consecutive banks.  Hardware serves
// accesses of 8 and 16 bytes by halves and quarters of a warp; of those this is the least.
class Banks {
  public:
    void ask(u64 address, int size) {
        for (u64 word = address / 4; word <= (address + static_cast<u64>(size) - 1) / 4; ++word) {
            const std::size_t bank = word % BANKS;
            u64 *const asked = words_[bank], *const end = asked + distinct_[bank];
            if (std::find(asked, end, word) == end)
                asked[distinct_[bank]++] = word;
        }
    }
    u64 wavefronts() const { return *std::max_element(distinct_, distinct_ + BANKS); }

  private:
    static constexpr std::size_t BANKS = 32;
    std::size_t distinct_[BANKS] = {};
    u64 words_[BANKS][LANES];  // no lane's bytes span a bank twice
};

// Calls f(lane, region, address in it) for every active lane's access, once it is found sound.
template <class F>
void each_access(Warp &warp, Op op, F f) {
    const int size = op.count * op.bits / 8;
    Banks banks;
    warp.for_active([&](int lane) {
        const int thread = warp.thread(lane);
        u64 address = warp.value(op.from[0])[lane] + static_cast<u64>(op.offset);
        const u64 asked = address;
        try {
            if (warp.unknown_bits(op.from[0], lane))
                throw Fault{.kind = FaultKind::UNDEFINED_ADDRESS};
            Region &region = warp.memory->at(op.space, address, size, thread);
            if (region.is_shared())
                banks.ask(address, size);
            f(lane, region, address - region.address);
        } catch (Fault &fault) {
            fault.thread = thread;
            fault.address = asked;
            fault.size = size;
            throw;
        }
    });
    warp.memory->wavefronts += banks.wavefronts();
}

template <bool SIGNED>
void load(Warp &warp, Op op) {
    const int bytes = op.bits / 8;
    each_access(warp, op, [&](int lane, Region &region, u64 at) {
        region.note_read(at, op.count * bytes, warp.thread(lane), warp.memory->clock,
                         op.read_only != 0);
        for (int n = 0; n < op.count; ++n) {
            u64 value, unknown;
            region.load(at + static_cast<u64>(n * bytes), bytes, value, unknown);
            // A narrow signed value fills the register that it is loaded to.
            const int reg = op.to[n];
            if (reg < 0)
                continue;
            const u64 mask = op.bits_from == 64 ? ~0ull : (1ull << op.bits_from) - 1;
            warp.set(reg, lane, static_cast<u64>(extended<SIGNED>(op.bits, value)) & mask,
                     static_cast<u64>(extended<SIGNED>(op.bits, unknown)) & mask);
        }
    });
}

inline void store(Warp &warp, Op op) {
    const int bytes = op.bits / 8;
    each_access(warp, op, [&](int lane, Region &region, u64 at) {
        if (!region.writable)
            throw Fault{.kind = FaultKind::READ_ONLY};
        region.note_write(at, op.count * bytes, warp.thread(lane), warp.memory->clock);
        for (int n = 0; n < op.count; ++n) {
            const int reg = op.from[1 + n];
            const u64 unknown = warp.unknown_bits(reg, lane) & op.mask();
            region.store(at + static_cast<u64>(n * bytes), bytes, warp.value(reg)[lane], unknown);
            if (unknown && region.leaves && warp.memory->pending.kind == FaultKind::NONE)
                warp.memory->pending = {.kind = FaultKind::UNDEFINED_STORE,
                                        .operation = -1,
                                        .thread = warp.thread(lane),
                                        .size = op.count * bytes,
                                        .address = region.address + at};
        }
    });
}

// ---- Between lanes -----------------------------------------------------------------------------

// The lanes that a .sync names must all be here.
inline void require_members(Warp &warp, int reg) {
    warp.for_active([&](int lane) {
        const u64 members = warp.value(reg)[lane];
        if (warp.unknown_bits(reg, lane) || (members & warp.existing) != warp.active)
            throw Fault{.kind = FaultKind::DIVERGENT_WARP, .thread = warp.thread(lane)};
    });
}

inline void sync_warp(Warp &warp, Op op) {
    require_members(warp, op.from[0]);
    if (warp.active == warp.existing)
        warp.memory->clock.pass_warp_sync(warp.index);
}

enum class Shuffle { UP, DOWN, BFLY, IDX };

// shfl.sync d, a, b, c, members, as the PTX manual writes it.
template <Shuffle MODE>
void shuffle(Warp &warp, Op op) {
    require_members(warp, op.from[3]);
    u64 value[LANES], unknown[LANES];
    LaneMask in_range = 0;
    warp.for_active([&](int lane) {
        const int b = static_cast<int>(warp.value(op.from[1])[lane] & 31);
        const int c = static_cast<int>(warp.value(op.from[2])[lane]);
        const int clamp = c & 31, segment = c >> 8 & 31;
        const int low = lane & segment, high = low | (clamp & ~segment);
        int from = MODE == Shuffle::UP     ? lane - b
                   : MODE == Shuffle::DOWN ? lane + b
                   : MODE == Shuffle::BFLY ? lane ^ b
                                           : low | (b & ~segment);
        if (MODE == Shuffle::UP ? from < high : from > high)
            from = lane;
        else
            in_range |= 1u << lane;
        const bool is_here = warp.active >> from & 1;
        value[lane] = warp.value(op.from[0])[from];
        unknown[lane] = warp.unknown_bits(op.from[1], lane) || warp.unknown_bits(op.from[2], lane)
                            ? op.mask()
                        : is_here ? warp.unknown_bits(op.from[0], from)
                                  : op.mask();
    });
    warp.for_active([&](int lane) {
        warp.set(op.to[0], lane, value[lane], unknown[lane]);
        if (op.to[1] >= 0)
            warp.set(op.to[1], lane, in_range >> lane & 1, 0);
    });
}

enum class Vote { ANY, ALL, BALLOT };

template <Vote MODE>
void vote(Warp &warp, Op op) {
    require_members(warp, op.from[1]);
    LaneMask ballot = 0, unknown = 0;
    warp.for_active([&](int lane) {
        ballot |= static_cast<LaneMask>(warp.value(op.from[0])[lane] & 1) << lane;
        unknown |= static_cast<LaneMask>(warp.unknown_bits(op.from[0], lane) & 1) << lane;
    });
    const u64 result = MODE == Vote::ANY   ? ballot != 0
                       : MODE == Vote::ALL ? ballot == warp.active
                                           : ballot;
    warp.for_active([&](int lane) {
        warp.set(op.to[0], lane, result, MODE == Vote::BALLOT ? unknown : unknown != 0);
    });
}

inline void active_mask(Warp &warp, Op op) {
    warp.for_active([&](int lane) { warp.set(op.to[0], lane, warp.active, 0); });
}

inline void add_accesses(Table &table) {
    table["ld.s"] = load<true>;
    table["ld.u"] = load<false>;
    table["st"] = store;
    table["bar.warp.sync"] = sync_warp;
    table["shfl.sync.up"] = shuffle<Shuffle::UP>;
    table["shfl.sync.down"] = shuffle<Shuffle::DOWN>;
    table["shfl.sync.bfly"] = shuffle<Shuffle::BFLY>;
    table["shfl.sync.idx"] = shuffle<Shuffle::IDX>;
    table["vote.sync.any"] = vote<Vote::ANY>;
    table["vote.sync.all"] = vote<Vote::ALL>;
    table["vote.sync.ballot"] = vote<Vote::BALLOT>;
    table["activemask"] = active_mask;
}

}  // namespace machine

#endif
