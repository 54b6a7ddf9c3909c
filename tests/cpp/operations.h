// The operations of a Backend over every kernel variant: row counts of a policy, sizes that divide
// by nothing, operands that are aligned to nothing, 1 and 2 threads.
//
// The scalar kernels are the reference. They must stay within a bound of the result in double
// precision that is derived from the number of roundings; every variant must give their bits. All
// are compiled from one source, so a mistake in it passes the comparison and only the bound sees
// it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/backend.h"
#include "cpu/isa.h"
#include "loose.h"

namespace smolvla {

struct Variant {
    std::string name;
    cpu::Kernels kernels;
    bool exact;  // held to the bits of the reference; otherwise to the bound, as the reference is
};

// One row, full and broken tiles, chunks of the expert, prefixes, the patches of an image.
constexpr int kRows[] = {1, 2, 7, 49, 50, 51, 64, 75, 113, 241, 1024};

// Runs an operation with every variant and counts the results that are not as promised.
class Judge {
public:
    using Operation = std::function<std::vector<float>(Backend&)>;

    // few: a small part of the sizes, enough for a kernel that is wrong everywhere; say: print what
    // is wrong.
    Judge(std::vector<Variant> variants, bool few, bool say)
        : few(few), variants_(std::move(variants)), say_(say) {}

    // bounds[i] belongs to result i; results of which `value` is NaN were not worked out.
    void run(const std::string& what, Compute compute, const std::vector<Bound>& bounds,
             const Operation& operation);
    // A result that `operation` itself found wrong.
    void require(bool condition, const std::string& what);

    const bool few;
    int wrong = 0;

private:
    void hold(const std::vector<float>& got, const std::vector<Bound>& bounds,
              const std::string& what);

    const std::vector<Variant> variants_;
    const bool say_;
};

void check_linear(Judge& judge);
void check_codes(Judge& judge);
void check_attention(Judge& judge);
void check_rows(Judge& judge);  // norms, rotations, copies

}  // namespace smolvla
