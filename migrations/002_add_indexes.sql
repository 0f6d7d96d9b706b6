-- As few as the reads need: each costs every drained operation one more insertion. None holds a column that an
-- update changes, so updates stay within their page (HOT).

-- A user's tasks, newest or oldest first, which is the default order; also finds them for the other orders.
CREATE INDEX tasks_by_user ON tasks (user_id, created_at, id) WHERE deleted_stamp = 0;

-- A repeat under an idempotency key is found by it, and two requests under one key can't both be recorded.
CREATE UNIQUE INDEX applied_operations_by_key ON applied_operations (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- Records past their time are removed oldest first.
CREATE INDEX applied_operations_by_finish ON applied_operations (finished_at);
