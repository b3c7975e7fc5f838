// Admits requests by two limits: a budget of bytes, and a number of requests.
// Both are checked before memory is allocated. Admission never waits, so two
// requests that need more bytes cannot deadlock. Knows neither gRPC nor
// attention.
#ifndef ATTND_SERVER_MEMORY_ADMISSION_H_
#define ATTND_SERVER_MEMORY_ADMISSION_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/workspace.h"
#include "server/memory/message_quota.h"

namespace attnd::server {

// Thread-safe. Reservations may outlive it.
class Admission {
  struct State;

 public:
  // The slot and the bytes of one request. The destructor gives back what is
  // left of them. Movable. Only one thread may use it at a time.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept
        : state_(std::move(other.state_)),
          bytes_(std::exchange(other.bytes_, 0)),
          message_bytes_(std::exchange(other.message_bytes_, 0)),
          has_slot_(std::exchange(other.has_slot_, false)) {}
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();

    // Makes sure that at least `bytes` are reserved in total. Otherwise changes
    // nothing and returns RESOURCE_EXHAUSTED, with RetryInfo unless `bytes`
    // exceed the whole budget.
    absl::Status GrowTo(int64_t bytes);
    // Gives back what is reserved above `bytes`.
    void ShrinkTo(int64_t bytes);
    // Gives the slot back, but not the bytes. Call it before the answer is
    // sent, so that a client that has the answer finds the slot free.
    void LeaveSlot();
    // Declares that `bytes` of this reservation are for messages that arrive.
    // Applies until the next call or until the reservation ends.
    void SetMessageShare(int64_t bytes);
    int64_t bytes() const { return bytes_; }

   private:
    friend class Admission;
    Reservation(std::shared_ptr<State> state, int64_t bytes)
        : state_(std::move(state)), bytes_(bytes), has_slot_(true) {}

    std::shared_ptr<State> state_;
    int64_t bytes_ = 0;
    int64_t message_bytes_ = 0;
    bool has_slot_ = false;
  };

  struct Usage {
    int64_t bytes = 0;
    int64_t in_flight = 0;  // slots that are taken
    int64_t reservations = 0;
  };

  // The budget covers what is reserved and what `pool` keeps for later: when a
  // request needs room, idle memory of `pool` is freed, and `messages` makes
  // malloc give memory back. Either may be null. `pool` must outlive every
  // reservation.
  Admission(int64_t budget_bytes, int64_t max_in_flight,
            WorkspacePool* pool = nullptr,
            std::shared_ptr<MessageQuota> messages = nullptr);

  // Returns a slot with `bytes`, or RESOURCE_EXHAUSTED, or UNAVAILABLE after
  // Close.
  absl::StatusOr<Reservation> Admit(int64_t bytes);
  // Refuses all requests from now on.
  void Close();

  int64_t budget_bytes() const;
  int64_t max_in_flight() const;
  Usage usage() const;

  // Waits until no reservation is left, until `timeout` has passed, or until
  // Interrupt is called. Returns whether no reservation is left.
  bool WaitIdle(std::chrono::nanoseconds timeout);
  // Ends every WaitIdle, now and later.
  void Interrupt();

 private:
  std::shared_ptr<State> state_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_MEMORY_ADMISSION_H_
