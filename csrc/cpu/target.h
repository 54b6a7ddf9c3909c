// Compiles the functions between BEGIN and END for more than the baseline CPU. GCC and clang spell
// it differently. Only what stands between the two gets the target; a flag on the whole file would
// also reach inline functions of the standard library, of which the linker keeps one copy for
// everybody.
#pragma once

#define SMOLVLA_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define SMOLVLA_TARGET_BEGIN(features) \
    SMOLVLA_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SMOLVLA_TARGET_END SMOLVLA_PRAGMA(clang attribute pop)
#else
#define SMOLVLA_TARGET_BEGIN(features) \
    SMOLVLA_PRAGMA(GCC push_options) SMOLVLA_PRAGMA(GCC target(features))
#define SMOLVLA_TARGET_END SMOLVLA_PRAGMA(GCC pop_options)
#endif
