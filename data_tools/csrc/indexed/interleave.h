// Interleave: which source sample i of a mix comes from.
//
// The source with the largest deficit goes next: that whose share of the samples so far lags furthest behind
// its weight (ties: the first). In integers: every source earns its weight each step, and the richest pays
// the sum of all weights. So the result is the same on every machine, and each source stays within a sample
// or two of its share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace ziya {

class Interleave {
public:
    explicit Interleave(std::vector<int64_t> weights)
        : weights_(std::move(weights)), counts_(weights_.size(), 0) {
        for (int64_t weight : weights_) total_ += weight;
        mark_every_ = weights_.size() <= 16 ? 256 : 1024;
        credit_.assign(weights_.size(), 0);
        marks_ = counts_;
    }

    // The source of sample i and how many samples of that source come before it.
    std::pair<int64_t, int64_t> at(int64_t i) {
        if (weights_.size() == 1) return {0, i};
        const std::lock_guard<std::mutex> lock(mutex_);
        go_to(i);
        const size_t source = step();
        return {static_cast<int64_t>(source), counts_[source] - 1};
    }

    // Samples of each source among the first i.
    std::vector<int64_t> counts(int64_t i) {
        const std::lock_guard<std::mutex> lock(mutex_);
        go_to(i);
        return counts_;
    }

private:
    static constexpr size_t kFew = 8;

    // Stands before sample i: from where we are if that is near, else from the closest mark below.
    void go_to(int64_t i) {
        const int64_t sources = weights_.size(), marked = marks_.size() / sources;
        if (i < at_ || i - at_ > mark_every_) {
            const int64_t mark = std::min(i / mark_every_, marked - 1);
            if (i < at_ || mark * mark_every_ > at_) {
                at_ = mark * mark_every_;
                for (int64_t s = 0; s < sources; ++s) {
                    counts_[s] = marks_[mark * sources + s];
                    // The true value is small; unsigned arithmetic lets the two large products wrap.
                    credit_[s] = static_cast<int64_t>(static_cast<uint64_t>(weights_[s]) * at_ -
                                                      static_cast<uint64_t>(total_) * counts_[s]);
                }
            }
        }
        if (weights_.size() <= kFew) few_to(i);
        while (at_ < i) step();
    }

    // The steps to sample i of a few sources, in arrays of a fixed size: twice as fast.
    void few_to(int64_t i) {
        const size_t sources = weights_.size();
        int64_t weights[kFew] = {}, credit[kFew], counts[kFew] = {};
        std::fill(credit, credit + kFew, INT64_MIN / 2);  // of no source: never the largest
        std::copy(weights_.begin(), weights_.end(), weights);
        std::copy(credit_.begin(), credit_.end(), credit);
        std::copy(counts_.begin(), counts_.end(), counts);
        while (at_ < i) {
            size_t best = 0;
            int64_t most = credit[0] += weights[0];
            for (size_t s = 1; s < kFew; ++s) {
                credit[s] += weights[s];
                // A branch, not a choice between values: the pattern repeats, so it is foreseen nearly always.
                if (__builtin_expect(credit[s] > most, 0)) {
                    most = credit[s];
                    best = s;
                }
            }
            credit[best] -= total_;
            ++counts[best];
            if (marked()) marks_.insert(marks_.end(), counts, counts + sources);
        }
        std::copy_n(credit, sources, credit_.begin());
        std::copy_n(counts, sources, counts_.begin());
    }

    // Goes to the next sample; is it one whose counters are to be kept?
    bool marked() {
        return (++at_ & (mark_every_ - 1)) == 0 &&
               static_cast<int64_t>(marks_.size() / weights_.size()) == at_ / mark_every_;
    }

    size_t step() {
        size_t best = 0;
        for (size_t s = 0; s < weights_.size(); ++s) {
            credit_[s] += weights_[s];
            if (credit_[s] > credit_[best]) best = s;
        }
        credit_[best] -= total_;
        ++counts_[best];
        if (marked()) marks_.insert(marks_.end(), counts_.begin(), counts_.end());
        return best;
    }

    std::vector<int64_t> weights_, counts_, credit_, marks_;
    int64_t mark_every_;  // samples between two marks of the counters, a power of two: the most steps of a look-up
    int64_t total_ = 0, at_ = 0;
    std::mutex mutex_;
};

}  // namespace ziya
