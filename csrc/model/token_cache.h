// Which blocks of a camera's frame are computed anew, and which keep what they were.
//
// A block is the scale x scale patches that become one token. Only the decision is here: what the
// blocks held is in Vision's memory. Written after Eventful Transformers (Dutson et al. 2023): the
// reference of a block is replaced only when the block is computed, so that small changes add up
// until they count.
//
// Blocks of padding never change. With `keep_padding` they are computed when nothing kept fits the
// call, and at no other time: a keyframe for another reason computes the other blocks alone.
#pragma once

#include <cstddef>
#include <vector>

#include "model/plan.h"

namespace smolvla {

// What was done with a frame.
struct CacheReport {
    bool used = false;      // whether this camera is cached at all
    bool keyframe = false;  // everything was computed but kept padding, because of `why`
    const char* why = nullptr;
    float dirty = 1;   // blocks computed, of all
    int oldest = 0;    // calls since the oldest block in use was computed, kept padding aside
    float drift = -1;  // largest relative change of a token that looked unchanged; < 0: unknown
};

// Rows of blocks at the top of a frame and columns at its left that are padding alone.
struct Padding {
    int rows = 0, columns = 0;
    bool operator==(const Padding& o) const { return rows == o.rows && columns == o.columns; }
};

class TokenCache {
public:
    enum class Work { nothing, some, all };

    explicit TokenCache(int most_blocks);

    // Nothing is valid any more.
    void forget() { valid_ = false; }

    // Before anything else of a call: whether the state is of such a frame, prompt and plan.
    // Otherwise `decide` answers `all`. `padding` is what is kept of it: none unless asked for.
    void look(int height, int width, const int* prompt, int count, const CacheRule& rule,
              LayerSet skip, Padding padding);
    // Whether the last frame, should it come again, has the tokens that it had.
    bool serves_again() const { return valid_ && whole_ && last_was_exact_; }
    // From the change of each of side x side blocks; with `same` the frame is the last one, for
    // which serves_again().
    Work decide(const float* change, int side, bool same);
    // The blocks to compute, ascending; of Work::some.
    const std::vector<int>& chosen() const { return chosen_; }
    // Of the chosen, those that would have been reused had they not been taken along.
    bool clean(int i) const {
        return !changed_[static_cast<std::size_t>(chosen_[static_cast<std::size_t>(i)])];
    }
    // What was decided has been done.
    void done(Work work);
    // How much each block was looked at in this call; the most looked at are wanted in the next.
    void attend(const float* mass);
    const CacheReport& report() const { return report_; }
    void set_drift(float drift) { report_.drift = drift; }

private:
    void want(const float* change, int side);
    void fill_bucket(const float* change);
    void list_others();
    void choose_wanted();
    int count_wanted() const;
    int oldest() const;
    Work all(const char* why);
    Work keyframe(const char* why);

    bool valid_ = false;
    bool whole_ = false;           // every block but padding was computed from one frame
    bool exact_ = false;           // what is reused now is of the same frame
    bool last_was_exact_ = false;  // the last frame was the one that every block is of
    int height_ = 0, width_ = 0, since_keyframe_ = 0, blocks_ = 0;
    int free_ = 0;  // blocks that are no kept padding
    Padding padding_;
    LayerSet skip_ = 0;
    CacheRule rule_;
    std::vector<int> prompt_, ages_, chosen_, order_;
    std::vector<int> attended_, next_attended_;  // blocks
    std::vector<char> kept_, changed_, wanted_;  // kept: as padding
    const char* invalid_ = nullptr;              // why
    CacheReport report_;
};

}  // namespace smolvla
