// Code that is compiled once for each kind of processor: which of it this CPU can run.

#ifndef CTGPU_VARIANTS_H
#define CTGPU_VARIANTS_H

#include <cstddef>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace ctgpu {

template <class Variant>
struct Candidate {
    const Variant *variant;
    bool (*usable)();
};

template <class Variant, std::size_t count>
std::vector<const Variant *> usable_of(const Candidate<Variant> (&candidates)[count]) {
    std::vector<const Variant *> usable;
    for (const Candidate<Variant> &candidate : candidates)
        if (candidate.usable())
            usable.push_back(candidate.variant);
    return usable;
}

// The one of that name, or the first for "".  `known` are the names on any processor, and `of` says
// in messages what they are variants of.
template <class Variant>
const Variant &variant_named(const std::string &name, const std::vector<const Variant *> &usable,
                             std::initializer_list<const char *> known, const std::string &of) {
    if (name.empty())
        return *usable.front();
    std::string names;
    for (const Variant *variant : usable) {
        if (name == variant->name)
            return *variant;
        names += names.empty() ? variant->name : std::string(", ") + variant->name;
    }
    for (const char *one : known)
        if (name == one)
            throw std::runtime_error("this CPU cannot run the variant " + name + of +
                                     "; it can run " + names);
    throw std::invalid_argument("there is no variant '" + name + "'" + of + "; this CPU can run " +
                                names);
}

}  // namespace ctgpu

#endif
