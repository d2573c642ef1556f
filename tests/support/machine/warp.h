// A warp: 32 lanes with their registers, and which bits of these are known.

#ifndef CTGPU_TESTS_WARP_H
#define CTGPU_TESTS_WARP_H

#include "memory.h"

#include <bit>

namespace machine {

constexpr int LANES = 32;
using LaneMask = u32;

// One instruction as ptx_lower.py packs it.  All operands are registers: constants, parameters and
// special registers are put into registers of their own before the kernel starts.
struct Operation {
    int handler;      // index that machine_find gave
    int guard;        // predicate register, or -1
    int guard_value;  // what the guard must be
    int bits;         // width of the type
    int bits_from;    // of the source's type, where it differs
    int flush;        // .ftz
    int space;        // SpaceId
    int count;        // elements of a vector
    int read_only;    // .nc
    int target;       // of a branch
    int to[4];
    int from[5];
    long long offset;  // of an address, or the bits to shift by

    u64 mask() const { return bits == 64 ? ~0ull : (1ull << bits) - 1; }
};

static_assert(sizeof(Operation) == 88, "ptx.py packs 88 bytes");

class Warp {
  public:
    int index;          // in its block
    LaneMask existing;  // lanes that are threads of the block and have not ended
    LaneMask active;    // lanes that do the operation at hand
    Memory *memory;

    Warp(int at, int registers)
        : index(at), values_(static_cast<std::size_t>(registers) * LANES), unknown_(values_.size()),
          partly_(static_cast<std::size_t>(registers)), never_(partly_.size()) {}

    // Nothing is known of any register.
    void forget() {
        std::fill(partly_.begin(), partly_.end(), ~0u);
        std::fill(never_.begin(), never_.end(), ~0u);
    }

    u64 *value(int reg) { return &values_[static_cast<std::size_t>(reg) * LANES]; }
    // Lanes in which some bit of the register is unknown.
    LaneMask partly(int reg) const { return partly_[static_cast<std::size_t>(reg)]; }

    u64 unknown_bits(int reg, int lane) const {
        const auto r = static_cast<std::size_t>(reg);
        return never_[r] >> lane & 1    ? ~0ull
               : partly_[r] >> lane & 1 ? unknown_[r * LANES + static_cast<std::size_t>(lane)]
                                        : 0;
    }
    // All that these lanes hold is known now.
    void know(int reg, LaneMask lanes) {
        partly_[static_cast<std::size_t>(reg)] &= ~lanes;
        never_[static_cast<std::size_t>(reg)] &= ~lanes;
    }
    // Some bits of this lane are not, after `know`.
    void doubt(int reg, int lane, u64 bits) {
        const auto r = static_cast<std::size_t>(reg);
        unknown_[r * LANES + static_cast<std::size_t>(lane)] = bits;
        partly_[r] |= bits ? 1u << lane : 0;
    }
    void set(int reg, int lane, u64 value_bits, u64 unknown_bits) {
        value(reg)[lane] = value_bits;
        know(reg, 1u << lane);
        doubt(reg, lane, unknown_bits);
    }

    // Every active lane, one after the other.
    template <class F>
    void for_active(F f) const {
        for (LaneMask rest = active; rest; rest &= rest - 1)
            f(std::countr_zero(rest));
    }

    int thread(int lane) const { return index * LANES + lane; }

  private:
    std::vector<u64> values_, unknown_;
    std::vector<LaneMask> partly_, never_;  // never_: lanes that nothing was written to
};

using Handler = void (*)(Warp &, const Operation &);

}  // namespace machine

#endif
