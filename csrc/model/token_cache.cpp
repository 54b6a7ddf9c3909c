#include "model/token_cache.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace smolvla {

using std::ptrdiff_t;
using std::size_t;

TokenCache::TokenCache(int most_blocks) {
    const size_t most = static_cast<size_t>(most_blocks);
    for (std::vector<int>* list : {&ages_, &chosen_, &order_, &attended_, &next_attended_})
        list->reserve(most);
    for (std::vector<char>* list : {&kept_, &changed_, &wanted_}) list->reserve(most);
}

void TokenCache::look(int height, int width, const int* prompt, int count, const CacheRule& rule,
                      LayerSet skip, Padding padding) {
    const bool same_prompt =
        prompt_.size() == size_t(count) && std::equal(prompt_.begin(), prompt_.end(), prompt);
    invalid_ = !valid_                                ? "first"
               : height != height_ || width != width_ ? "frame size"
               : !same_prompt                         ? "prompt"
               : !(rule == rule_) || skip != skip_    ? "plan"
               : !(padding == padding_)               ? "frame size"
                                                      : nullptr;
    attended_.swap(next_attended_);
    next_attended_.clear();
    if (!invalid_) return;
    attended_.clear();
    valid_ = false;
    height_ = height;
    width_ = width;
    prompt_.assign(prompt, prompt + count);
    rule_ = rule;
    skip_ = skip;
    padding_ = padding;
}

TokenCache::Work TokenCache::all(const char* why) {
    chosen_.clear();
    valid_ = false;  // not before it is done
    report_ = {true, true, why, 1, 0, -1};
    return Work::all;
}

// Of state that fits: padding stays what it is.
TokenCache::Work TokenCache::keyframe(const char* why) {
    if (free_ == blocks_) return all(why);
    changed_.assign(size_t(blocks_), 1);
    wanted_.assign(size_t(blocks_), 0);
    for (int b = 0; b < blocks_; ++b) wanted_[size_t(b)] = !kept_[size_t(b)];
    choose_wanted();
    valid_ = false;  // not before it is done
    report_ = {true, true, why, float(free_) / float(blocks_), 0, -1};
    return Work::some;
}

TokenCache::Work TokenCache::decide(const float* change, int side, bool same) {
    blocks_ = side * side;
    kept_.assign(size_t(blocks_), 0);
    for (int b = 0; b < blocks_; ++b)
        kept_[size_t(b)] = b / side < padding_.rows || b % side < padding_.columns;
    free_ = static_cast<int>(std::count(kept_.begin(), kept_.end(), 0));
    exact_ = false;
    if (invalid_) return all(invalid_);
    const float* end = change + blocks_;
    if (whole_ && (same || std::all_of(change, end, [](float c) { return c == 0; }))) {
        chosen_.clear();
        exact_ = true;
        report_ = {true, false, nullptr, 0, oldest(), -1};
        return Work::nothing;
    }
    if (rule_.threshold == 0 && std::any_of(change, end, [](float c) { return !(c == 0); }))
        return keyframe("changed");
    if (since_keyframe_ + 1 >= rule_.keyframe_every) return keyframe("every n");
    want(change, side);
    if (count_wanted() > 3 * free_ / 4) return keyframe("scene");
    fill_bucket(change);
    choose_wanted();
    int oldest = 0;
    for (int b = 0; b < blocks_; ++b)
        if (!wanted_[size_t(b)] && !kept_[size_t(b)])
            oldest = std::max(oldest, ages_[size_t(b)] + 1);
    report_ = {true, false, nullptr, float(chosen_.size()) / float(blocks_), oldest, -1};
    valid_ = chosen_.empty();  // not before it is done
    return valid_ ? Work::nothing : Work::some;
}

int TokenCache::count_wanted() const {
    return static_cast<int>(std::count(wanted_.begin(), wanted_.end(), 1));
}

int TokenCache::oldest() const {
    int oldest = 0;
    for (int b = 0; b < blocks_; ++b)
        if (!kept_[size_t(b)]) oldest = std::max(oldest, ages_[size_t(b)]);
    return oldest;
}

void TokenCache::choose_wanted() {
    chosen_.clear();
    for (int b = 0; b < blocks_; ++b)
        if (wanted_[size_t(b)]) chosen_.push_back(b);
}

// Blocks that may be wanted and are not yet.
void TokenCache::list_others() {
    order_.clear();
    for (int b = 0; b < blocks_; ++b)
        if (!wanted_[size_t(b)] && !kept_[size_t(b)]) order_.push_back(b);
}

// Changed blocks and their neighbours, those that are too old or were looked at, and a few others
// to check.
void TokenCache::want(const float* change, int side) {
    changed_.assign(size_t(blocks_), 0);
    wanted_.assign(size_t(blocks_), 0);
    for (int b = 0; b < blocks_; ++b) {
        changed_[size_t(b)] = !(change[b] <= rule_.threshold);  // NaN too
        if (!changed_[size_t(b)]) continue;
        const int y = b / side, x = b % side, reach = std::min(rule_.dilate, side);
        for (int v = std::max(0, y - reach); v <= std::min(side - 1, y + reach); ++v)
            for (int u = std::max(0, x - reach); u <= std::min(side - 1, x + reach); ++u)
                wanted_[size_t(v * side + u)] = 1;
    }
    for (const int b : attended_) wanted_[size_t(b)] = 1;
    for (int b = 0; b < blocks_; ++b) {
        if (ages_[size_t(b)] + 1 >= rule_.max_age) wanted_[size_t(b)] = 1;
        if (kept_[size_t(b)]) wanted_[size_t(b)] = 0;
    }
    list_others();
    const size_t checked = std::min(order_.size(), size_t(rule_.check));
    std::partial_sort(order_.begin(), order_.begin() + ptrdiff_t(checked), order_.end(),
                      [&](int a, int b) {
                          const int older = ages_[size_t(a)] - ages_[size_t(b)];
                          return older != 0 ? older > 0 : a < b;
                      });
    for (size_t i = 0; i < checked; ++i) wanted_[size_t(order_[i])] = 1;
}

// Up to a multiple of an eighth of the frame: few sizes, so that what computes them is recorded.
void TokenCache::fill_bucket(const float* change) {
    const int grain = std::max(1, blocks_ / 8), count = count_wanted();
    const int size = std::min((count + grain - 1) / grain * grain, free_);
    list_others();
    std::partial_sort(order_.begin(), order_.begin() + (size - count), order_.end(),
                      [&](int a, int b) {
                          if (change[a] != change[b]) return change[a] > change[b];
                          const int older = ages_[size_t(a)] - ages_[size_t(b)];
                          return older != 0 ? older > 0 : a < b;
                      });
    for (int i = 0; i < size - count; ++i) wanted_[size_t(order_[size_t(i)])] = 1;
}

void TokenCache::attend(const float* mass) {
    order_.clear();
    for (int b = 0; b < blocks_; ++b) {
        if (!std::isfinite(mass[b])) return;
        if (!kept_[size_t(b)]) order_.push_back(b);
    }
    const auto end = order_.begin() + std::min(ptrdiff_t{rule_.attended}, ptrdiff_t{free_});
    std::partial_sort(order_.begin(), end, order_.end(),
                      [&](int a, int b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a < b; });
    next_attended_.assign(order_.begin(), end);
}

void TokenCache::done(Work work) {
    last_was_exact_ = exact_ || report_.keyframe;
    if (work == Work::nothing) {
        if (exact_) return;
        for (int& age : ages_) ++age;
        ++since_keyframe_;
        return;
    }
    valid_ = true;
    invalid_ = nullptr;
    whole_ = report_.keyframe;
    since_keyframe_ = whole_ ? 0 : since_keyframe_ + 1;
    if (work == Work::all) {
        ages_.assign(size_t(blocks_), 0);
        return;
    }
    for (int b = 0; b < blocks_; ++b)
        ages_[size_t(b)] = wanted_[size_t(b)] ? 0 : ages_[size_t(b)] + 1;
}

}  // namespace smolvla
