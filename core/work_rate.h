// Learns how long calls take from the calls that have been computed. This is
// the only place that turns operations into time.
#ifndef ATTND_CORE_WORK_RATE_H_
#define ATTND_CORE_WORK_RATE_H_

#include <array>
#include <chrono>
#include <cstdint>

namespace attnd {

// What the time of a job is estimated from.
struct Work {
  // Jobs of one kind take about the same time for each operation. Below
  // WorkRate::kKinds.
  int kind = 0;
  // How many floating-point operations the job takes, or 0 if that is not
  // known.
  int64_t operations = 0;
};

// For each kind of work, a running estimate of the seconds that one worker
// takes for an operation, and of those that every job takes in addition. New
// measurements count more than old ones. Not thread-safe.
class WorkRate {
 public:
  static constexpr int kKinds = 64;

  // Returns how long one worker would take for `work`. Before any job of this
  // kind was measured, this is an estimate from the other kinds.
  std::chrono::nanoseconds Estimate(const Work& work) const;

  // Returns whether a job of this kind was measured.
  bool Knows(const Work& work) const;

  // Adds the measurement of a job: the worker time that it took.
  void Observe(const Work& work, std::chrono::nanoseconds worker_time);

 private:
  // The sums of a linear regression of time on operations. A measurement has
  // the weight 1 / t^2, where t is the time that was expected, so that the
  // relative errors are small. With the measured time, slow jobs would count
  // too little. Each new one reduces the weight of all earlier ones.
  struct Sums {
    double one = 0, x = 0, xx = 0, y = 0, xy = 0;

    void Add(double operations, double seconds);
    double Predict(double operations) const;
  };

  std::array<Sums, kKinds> kinds_;
  Sums all_;
};

}  // namespace attnd

#endif  // ATTND_CORE_WORK_RATE_H_
