// Every operation over every kernel variant of this build that this CPU can run.
#include "check.h"
#include "isas.h"
#include "operations.h"

using namespace smolvla;

int main() {
    std::vector<Variant> variants;
    for (const std::string& isa : runnable_isas())
        variants.push_back({isa, cpu::choose_kernels(isa), true});
    Judge judge(variants, false, true);
    check_linear(judge);
    check_codes(judge);
    check_attention(judge);
    check_rows(judge);
    failures += judge.wrong;
    return report("operations");
}
