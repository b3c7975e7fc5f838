// Who may come in: a byte budget and a number of requests, kept before memory
// is allocated. Never waits, so two requests that grow cannot deadlock. Knows
// no gRPC and no attention, but the pool whose idle memory the budget covers,
// and the messages that arrive beside it.
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
  // A request's slot and bytes, given back by the destructor at the latest.
  // Movable; used by one thread at a time.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept
        : state_(std::move(other.state_)),
          bytes_(std::exchange(other.bytes_, 0)),
          lent_bytes_(std::exchange(other.lent_bytes_, 0)),
          has_slot_(std::exchange(other.has_slot_, false)) {}
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();

    // Holds at least `bytes` in all, or refuses and changes nothing:
    // RESOURCE_EXHAUSTED, with RetryInfo where the whole budget would do.
    absl::Status GrowTo(int64_t bytes);
    // Gives back what is held above `bytes`.
    void ShrinkTo(int64_t bytes);
    // Before the answer goes: whoever has it finds the slot free. The bytes
    // stay for as long as they are held.
    void LeaveSlot();
    // Of what is held, `bytes` are for messages that come for this request,
    // from now until another number is said or the reservation goes.
    void LendToMessages(int64_t bytes);
    int64_t bytes() const { return bytes_; }

   private:
    friend class Admission;
    Reservation(std::shared_ptr<State> state, int64_t bytes)
        : state_(std::move(state)), bytes_(bytes), has_slot_(true) {}

    std::shared_ptr<State> state_;
    int64_t bytes_ = 0;
    int64_t lent_bytes_ = 0;
    bool has_slot_ = false;
  };

  struct Usage {
    int64_t bytes = 0;
    int64_t in_flight = 0;  // slots
    int64_t reservations = 0;
  };

  // What is reserved and what lies idle in `pool` together stay within the
  // budget: idle memory goes when a request needs its room, and so does what
  // `messages` left. `pool` must outlive every reservation; null: none.
  Admission(int64_t budget_bytes, int64_t max_in_flight,
            WorkspacePool* pool = nullptr,
            std::shared_ptr<MessageQuota> messages = nullptr);

  // A slot and `bytes`, or RESOURCE_EXHAUSTED at once; UNAVAILABLE once closed.
  absl::StatusOr<Reservation> Admit(int64_t bytes);
  // Lets nobody in from now on.
  void Close();

  int64_t budget_bytes() const;
  int64_t max_in_flight() const;
  Usage usage() const;

  // Waits until no reservation is left, `timeout` has passed or Interrupt is
  // called; true where none is left.
  bool WaitIdle(std::chrono::nanoseconds timeout);
  // Ends every WaitIdle, for good.
  void Interrupt();

 private:
  std::shared_ptr<State> state_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_MEMORY_ADMISSION_H_
