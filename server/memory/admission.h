// Decides which requests the server accepts, by two limits: the bytes of memory
// that all requests together may hold (the budget), and the number of requests
// at a time (the slots). Shares both among the callers. A request reserves its
// bytes before it allocates memory. It never waits for bytes that others hold,
// so two requests cannot deadlock. Uses neither gRPC nor attention.
#ifndef ATTND_SERVER_MEMORY_ADMISSION_H_
#define ATTND_SERVER_MEMORY_ADMISSION_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"
#include "server/memory/message_quota.h"

namespace attnd::server {

// The budget and the slots of one server. Each request holds a Reservation.
// Thread-safe. A Reservation may outlive this object.
//
// The share of a caller is a limit divided by the number of callers that hold a
// reservation (docs/adr/0012-shares-by-caller.md has the reasons):
//
// - One caller alone may take all slots and all bytes.
// - Slots: while all are taken, a caller that holds less than its share still
//   gets one, until twice the limit is taken.
// - Bytes: while there are other callers, or have been within the last minute,
//   one that would hold more than its share in several requests gets bytes only
//   while a quarter of the budget stays free for the others. It gets none for a
//   second after the server has refused bytes to a caller within its share.
class Admission {
  struct State;

 public:
  using Clock = SteadyTime (*)();

  // The slot and the bytes that one request holds. The destructor gives both
  // back. Movable. Only one thread may use it at a time.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept
        : state_(std::move(other.state_)),
          caller_(other.caller_),
          bytes_(std::exchange(other.bytes_, 0)),
          message_bytes_(std::exchange(other.message_bytes_, 0)),
          has_slot_(std::exchange(other.has_slot_, false)) {}
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();

    // Reserves more, so that the reservation has at least `bytes` in total. If
    // the budget does not allow that, changes nothing and returns
    // RESOURCE_EXHAUSTED. The error tells the client when to try again
    // (RetryInfo), unless `bytes` exceed the whole budget.
    absl::Status GrowTo(int64_t bytes);
    // Gives all bytes but `bytes` back to the budget.
    void ShrinkTo(int64_t bytes);
    // Gives the slot back, but not the bytes. Call it before the answer is
    // sent, so that a client that has the answer finds the slot free for its
    // next request.
    void LeaveSlot();
    // Declares that `bytes` of this reservation are meant for messages that
    // gRPC is still receiving for this request. The memory that gRPC may use
    // for messages grows by them (MessageQuota) until the next call of this
    // function, or until the reservation ends.
    void SetMessageShare(int64_t bytes);
    int64_t bytes() const { return bytes_; }

   private:
    friend class Admission;
    Reservation(std::shared_ptr<State> state, uint64_t caller, int64_t bytes)
        : state_(std::move(state)),
          caller_(caller),
          bytes_(bytes),
          has_slot_(true) {}

    std::shared_ptr<State> state_;
    uint64_t caller_ = 0;
    int64_t bytes_ = 0;
    int64_t message_bytes_ = 0;
    bool has_slot_ = false;
  };

  // What all reservations together hold, or those of one caller.
  struct Usage {
    int64_t bytes = 0;
    int64_t in_flight = 0;  // slots
    int64_t reservations = 0;
  };

  // Limits all requests together to `budget_bytes` and `max_in_flight` slots.
  // The memory that `pool` keeps for later requests is part of the budget: if a
  // request needs the bytes, the pool frees them, and `messages` makes malloc
  // give freed messages back to the operating system. Both may be null. `pool`
  // must outlive every reservation. `clock` is for tests.
  Admission(int64_t budget_bytes, int64_t max_in_flight,
            WorkspacePool* pool = nullptr,
            std::shared_ptr<MessageQuota> messages = nullptr,
            Clock clock = std::chrono::steady_clock::now);

  // Reserves a slot and `bytes` for a new request of `caller`. Requests with
  // the same number belong to the same caller. Returns RESOURCE_EXHAUSTED if
  // either is not available, with RetryInfo unless `bytes` exceed the whole
  // budget. Returns UNAVAILABLE after Close.
  absl::StatusOr<Reservation> Admit(int64_t bytes, uint64_t caller = 0);
  // Returns OK, or after Close the error of Admit. Reserves nothing. It is for
  // requests that need neither a slot nor bytes.
  absl::Status CheckOpen() const;
  // Makes Admit refuse all requests from now on.
  void Close();

  int64_t budget_bytes() const;
  int64_t max_in_flight() const;
  Usage usage() const;
  // Returns how many callers hold a reservation.
  int64_t callers() const;

  // Waits until there are no reservations, until `timeout` has passed, or until
  // Interrupt is called. Returns true if there are no reservations.
  bool WaitIdle(std::chrono::nanoseconds timeout);
  // Makes every call of WaitIdle return at once, from now on.
  void Interrupt();

 private:
  std::shared_ptr<State> state_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_MEMORY_ADMISSION_H_
