// The instruction sets that a test runs over, and the ones it was promised.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"

// Every ISA of this build that this CPU can run, scalar first. SMOLVLA_EXPECT_ISAS=a,b lists what
// must be among them (cmake -DSMOLVLA_EXPECT_ISAS=a,b sets it for ctest): a machine or emulator
// that should have an ISA and does not fails here, where it would otherwise test less in silence.
inline std::vector<std::string> runnable_isas() {
    using namespace smolvla::cpu;
    std::vector<std::string> isas = {"scalar"};
    for (const KernelRow& row : kernel_table(choose_kernels("scalar")))
        if (row.supported && std::find(isas.begin(), isas.end(), row.isa) == isas.end())
            isas.push_back(row.isa);
    std::printf("instruction sets:");
    for (const std::string& isa : isas) std::printf(" %s", isa.c_str());
    const char* list = std::getenv("SMOLVLA_EXPECT_ISAS");
    std::string expected = list ? list : "";
    std::printf(expected.empty() ? " (none promised)\n" : " (promised: %s)\n", expected.c_str());
    while (!expected.empty()) {
        const size_t comma = expected.find(',');
        const std::string isa = expected.substr(0, comma);
        if (std::find(isas.begin(), isas.end(), isa) == isas.end()) {
            ++failures;
            std::printf("failed: %s was promised, but this build or CPU does not have it\n",
                        isa.c_str());
        }
        expected = comma == std::string::npos ? "" : expected.substr(comma + 1);
    }
    return isas;
}
