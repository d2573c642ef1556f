// What a kernel may touch, what has been written there, and who touched it since the last barrier.
//
// Every byte has two shadows.  `undefined` has a bit for each of its bits: set where nobody wrote a
// known value.  `accesses` has its last writer and reader in this launch, by which races are found:
// two threads, one of them writing, with no barrier between them.

#ifndef CTGPU_TESTS_MEMORY_H
#define CTGPU_TESTS_MEMORY_H

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace machine {

using u8 = std::uint8_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

// As in ptx.py, which puts them into words.
enum class FaultKind : int {
    NONE,
    OUT_OF_BOUNDS,
    MISALIGNED,
    READ_ONLY,
    RACE,
    CHANGED_WHILE_READ_ONLY,  // a load says .nc, and a thread of this launch writes there
    UNDEFINED_ADDRESS,
    UNDEFINED_BRANCH,
    UNDEFINED_STORE,
    DIVERGENT_BARRIER,
    DIVERGENT_WARP,
    ENDLESS,
    TOO_MANY_BARRIERS,
    NO_MEMORY,
};

struct Fault {
    FaultKind kind = FaultKind::NONE;
    int operation = 0, block = 0;
    int thread = -1;  // in its block
    int other = -1;   // likewise; -1 where it is not known, -2 in another block
    int size = 0;
    u64 address = 0;
};

// ---- Races -------------------------------------------------------------------------------------

// The time and thread of an access: 21 bits of era, 11 bits of thread + 1; 0 for none.  Eras count
// up through the whole launch: a new one begins with every block and at every barrier.
using Stamp = u32;
constexpr u32 THREAD_BITS = 11, THREAD_MASK = (1u << THREAD_BITS) - 1;
constexpr u32 SEVERAL = THREAD_MASK - 1;  // in the place of a thread
constexpr u32 LAST_ERA = (1u << (32 - THREAD_BITS)) - 2;
constexpr Stamp READ_ONLY_READER = ~0u;  // read by a load that says .nc

struct Access {
    Stamp writer, reader;
};

struct Clock {
    u32 now = 0;            // era
    u32 block_begin = 0;    // first era of this block: what is older comes from another block
    u32 barrier = 0;        // first era after the last barrier of the block
    u32 warp_sync[32];      // first era after the last bar.warp.sync of each warp
    bool one_warp = false;  // whether blocks are of one: several threads are all of it then

    void begin_block() {
        block_begin = barrier = tick();
        std::fill_n(warp_sync, 32, now);
    }
    void pass_barrier() { barrier = tick(); }
    void pass_warp_sync(int warp) { warp_sync[warp] = tick(); }

    Stamp stamp(int thread) const { return now << THREAD_BITS | static_cast<u32>(thread + 1); }

    bool is_of_another_block(Stamp stamp) const {
        return stamp && stamp >> THREAD_BITS < block_begin;
    }

    // Whether nothing orders that access before one of `thread` now.
    bool is_concurrent(Stamp stamp, int thread) const {
        const u32 era = stamp >> THREAD_BITS, other = stamp & THREAD_MASK;
        if (stamp == 0 || is_of_another_block(stamp))
            return stamp != 0;
        if (other == static_cast<u32>(thread + 1))
            return false;
        const bool same_warp =
            one_warp || (other != SEVERAL && (other - 1) / 32 == static_cast<u32>(thread) / 32);
        return era >= (same_warp ? std::max(barrier, warp_sync[thread / 32]) : barrier);
    }

  private:
    u32 tick() {
        if (now == LAST_ERA)
            throw Fault{.kind = FaultKind::TOO_MANY_BARRIERS};
        return ++now;
    }
};

// ---- Regions -----------------------------------------------------------------------------------

// One allocation, variable of shared memory, or thread's local memory.
class Region {
  public:
    u64 address;  // as the kernel sees it
    u64 size;
    u8 *bytes;
    u8 *undefined;  // null: all of it is defined
    bool writable;
    bool leaves;     // outlives the block: nothing unknown may be stored here
    bool is_common;  // several threads reach it

    Region(u64 address, u64 size, u8 *bytes, u8 *undefined, bool writable, bool leaves,
           bool is_common)
        : address(address), size(size), bytes(bytes), undefined(undefined), writable(writable),
          leaves(leaves), is_common(is_common) {}

    bool is_shared() const { return is_common && !leaves; }

    void load(u64 at, int size, u64 &value, u64 &unknown) const {
        value = unknown = 0;
        std::memcpy(&value, bytes + at, static_cast<std::size_t>(size));
        if (undefined)
            std::memcpy(&unknown, undefined + at, static_cast<std::size_t>(size));
    }
    void store(u64 at, int size, u64 value, u64 unknown) {
        std::memcpy(bytes + at, &value, static_cast<std::size_t>(size));
        if (undefined)
            std::memcpy(undefined + at, &unknown, static_cast<std::size_t>(size));
    }

    void note_read(u64 at, int size, int thread, const Clock &clock, bool read_only) {
        if (!is_common || !writable)
            return;
        const Stamp stamp = clock.stamp(thread);
        for (Access *a = accesses(at), *end = a + size; a < end; ++a) {
            if (read_only) {
                if (a->writer)
                    throw fault(FaultKind::CHANGED_WHILE_READ_ONLY, a->writer, clock);
                a->reader = READ_ONLY_READER;
                continue;
            }
            if (clock.is_concurrent(a->writer, thread))
                throw fault(FaultKind::RACE, a->writer, clock);
            // Another block's access stays: nothing ever orders it before a write.
            if (a->reader == READ_ONLY_READER || clock.is_of_another_block(a->reader))
                continue;
            a->reader =
                clock.is_concurrent(a->reader, thread) ? (stamp & ~THREAD_MASK) | SEVERAL : stamp;
        }
    }
    void note_write(u64 at, int size, int thread, const Clock &clock) {
        if (!is_common)
            return;
        for (Access *a = accesses(at), *end = a + size; a < end; ++a) {
            if (a->reader == READ_ONLY_READER)
                throw fault(FaultKind::CHANGED_WHILE_READ_ONLY, a->writer, clock);
            if (clock.is_concurrent(a->writer, thread))
                throw fault(FaultKind::RACE, a->writer, clock);
            if (clock.is_concurrent(a->reader, thread))
                throw fault(FaultKind::RACE, a->reader, clock);
            a->writer = clock.stamp(thread);
        }
    }

    // As if nobody had been here.
    void forget_accesses() {
        if (accesses_)
            std::memset(static_cast<void *>(accesses_.get()), 0, size * sizeof(Access));
    }

  private:
    struct Free {
        void operator()(Access *a) const { std::free(a); }
    };
    std::unique_ptr<Access[], Free> accesses_;

    // Fresh pages are zero, and cost nothing until they are used.
    Access *accesses(u64 at) {
        if (!accesses_)
            accesses_.reset(static_cast<Access *>(std::calloc(size, sizeof(Access))));
        if (!accesses_)
            throw Fault{.kind = FaultKind::NO_MEMORY};
        return accesses_.get() + at;
    }

    static Fault fault(FaultKind kind, Stamp stamp, const Clock &clock) {
        const u32 other = stamp & THREAD_MASK;
        if (clock.is_of_another_block(stamp))
            return {.kind = kind, .other = -2};
        return {.kind = kind,
                .other = other && other != SEVERAL ? static_cast<int>(other) - 1 : -1};
    }
};

// Regions of one address space, apart from each other.
class Space {
  public:
    void add(Region region) {
        regions_.push_back(std::move(region));
        std::sort(regions_.begin(), regions_.end(),
                  [](const Region &a, const Region &b) { return a.address < b.address; });
    }
    // The region that holds all of these bytes, or null.
    Region *find(u64 address, int size) {
        const auto holds = [&](const Region &r) {
            return address >= r.address && address - r.address < r.size &&
                   r.size - (address - r.address) >= static_cast<u64>(size);
        };
        if (last_ < regions_.size() && holds(regions_[last_]))
            return &regions_[last_];
        const auto after = std::upper_bound(regions_.begin(), regions_.end(), address,
                                            [](u64 at, const Region &r) { return at < r.address; });
        if (after == regions_.begin() || !holds(*(after - 1)))
            return nullptr;
        last_ = static_cast<std::size_t>(after - 1 - regions_.begin());
        return &regions_[last_];
    }
    std::vector<Region> &regions() { return regions_; }

  private:
    std::vector<Region> regions_;
    std::size_t last_ = 0;
};

// Generic addresses in these windows are shared and local ones; all others are global.
constexpr u64 WINDOW_BYTES = 1ull << 32;
constexpr u64 SHARED_WINDOW = 1ull << 60, LOCAL_WINDOW = 1ull << 61;

enum SpaceId : int { GENERIC, GLOBAL, SHARED, LOCAL };

// The memory that the threads of one block see.
class Memory {
  public:
    Space global, shared;
    std::vector<Region> local;  // by thread
    Clock clock;
    // Something unknown was stored.  It waits until the block has ended: where it comes from a
    // race, that is the thing to say.
    Fault pending;
    u64 wavefronts = 0;  // of shared memory, by the operation at hand

    // Shared and local memory hold nothing known when a block begins.
    void begin_block() {
        clock.begin_block();
        pending = {};
        for (Region &r : shared.regions()) {
            forget(r);
            r.forget_accesses();
        }
        for (Region &r : local)
            forget(r);
    }

    // Where `size` bytes at an address of a space lie, or a fault.
    Region &at(int space, u64 &address, int size, int thread) {
        if (space == GENERIC) {
            space = GLOBAL;
            for (const auto &[window, id] :
                 {std::pair{SHARED_WINDOW, SHARED}, {LOCAL_WINDOW, LOCAL}})
                if (address - window < WINDOW_BYTES) {
                    address -= window;
                    space = id;
                }
        }
        Region *region = space == GLOBAL ? global.find(address, size) : nullptr;
        if (space == SHARED)
            region = shared.find(address, size);
        if (space == LOCAL) {
            region = &local[static_cast<std::size_t>(thread)];
            if (address > region->size || region->size - address < static_cast<u64>(size))
                region = nullptr;
        }
        if (!region)
            throw Fault{.kind = FaultKind::OUT_OF_BOUNDS};
        if (address % static_cast<u64>(size))
            throw Fault{.kind = FaultKind::MISALIGNED};
        return *region;
    }

  private:
    static void forget(Region &r) {
        std::fill_n(r.bytes, r.size, u8(0xff));
        std::fill_n(r.undefined, r.size, u8(0xff));
    }
};

}  // namespace machine

#endif
