// Interleave: which source sample i of a mix comes from.
//
// The source with the largest deficit goes next: that whose share of the samples so far lags furthest behind
// its weight (ties: the first). In integers: every source earns its weight each step, and the richest pays
// the sum of all weights. So the result is the same on every machine, and each source stays within a sample
// or two of its share.
#pragma once

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
        credit_.assign(weights_.size(), 0);
        marks_ = counts_;
    }

    // The source of sample i and how many samples of that source come before it.
    std::pair<int64_t, int64_t> at(int64_t i) {
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
    static constexpr int64_t kBlock =
        1024;  // the counters are kept once a block: at most this many steps a look-up

    // Stands before sample i: from where we are if that is near, else from the closest mark below.
    void go_to(int64_t i) {
        const int64_t sources = weights_.size(), marked = marks_.size() / sources;
        if (i < at_ || i - at_ > kBlock) {
            const int64_t mark = std::min(i / kBlock, marked - 1);
            if (i < at_ || mark * kBlock > at_) {
                at_ = mark * kBlock;
                for (int64_t s = 0; s < sources; ++s) {
                    counts_[s] = marks_[mark * sources + s];
                    // The true value is small; unsigned arithmetic lets the two large products wrap.
                    credit_[s] = static_cast<int64_t>(static_cast<uint64_t>(weights_[s]) * at_ -
                                                      static_cast<uint64_t>(total_) * counts_[s]);
                }
            }
        }
        while (at_ < i) step();
    }

    size_t step() {
        size_t best = 0;
        for (size_t s = 0; s < weights_.size(); ++s) {
            credit_[s] += weights_[s];
            if (credit_[s] > credit_[best]) best = s;
        }
        credit_[best] -= total_;
        ++counts_[best];
        if (++at_ % kBlock == 0 && static_cast<int64_t>(marks_.size() / weights_.size()) == at_ / kBlock)
            marks_.insert(marks_.end(), counts_.begin(), counts_.end());
        return best;
    }

    std::vector<int64_t> weights_, counts_, credit_, marks_;
    int64_t total_ = 0, at_ = 0;
    std::mutex mutex_;
};

}  // namespace ziya
