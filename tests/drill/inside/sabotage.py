"""Ways to break Outlast, one of them in every process of a drill: the drill must notice."""


def generators_not_restored(module):
    module.restore_rng = lambda _tree, _tensors: []


def position_shifted_by_one(module):
    begin = module.MapSource.begin

    def shifted(self, epoch, position):
        if position is not None:
            position = {
                **position,
                "batches": position["batches"] + 1,
                "samples": position["samples"] + position["step"],
            }
        return begin(self, epoch, position)

    module.MapSource.begin = shifted


def optimizer_buffer_missing(module):
    original = module.restore_states

    def without_a_buffer(states, tree, tensors):
        notes = original(states, tree, tensors)
        for entry in states["optimizer"].state.values():
            entry["exp_avg_sq"].zero_()
        return notes

    module.restore_states = without_a_buffer


def restoring_switched_off(module):
    module.committed = lambda _store: []


def saves_never_committed(module):
    module.commit = lambda *_: True


def agent_ignores_signals(module):
    module.SignalSource._handle = lambda _self, _number, _frame: None


def trainer_ignores_signals(module):
    module.Signals._terminate = lambda _self, _number, _frame: None


def tail_run_twice(module):
    go_on = module.Loop._continue

    def one_tail_back(self, resumed):
        go_on(self, resumed)
        if not self.tail_open and resumed.position["batches"] is None and self.epoch > 0:
            self.epoch, self.tail_open = self.epoch - 1, True

    module.Loop._continue = one_tail_back


def tail_not_run(module):
    go_on = module.Loop._continue

    def past_the_tail(self, resumed):
        go_on(self, resumed)
        if self.tail_open:
            self.epoch, self.tail_open = self.epoch + 1, False

    module.Loop._continue = past_the_tail


PATCHES = {
    "generators not restored": {"outlast.state.rng": generators_not_restored},
    "position shifted by one": {"outlast.data.mapped": position_shifted_by_one},
    "optimizer buffer missing": {"outlast.trainer.resume": optimizer_buffer_missing},
    "restoring switched off": {"outlast.checkpoint.catalog": restoring_switched_off},
    "saves never committed": {
        "outlast.agent.once": saves_never_committed,
        "outlast.checkpoint.catalog": saves_never_committed,
    },
    "notices ignored": {
        "outlast.notice.signals": agent_ignores_signals,
        "outlast.trainer.signals": trainer_ignores_signals,
    },
    "tail run twice": {"outlast.trainer.loop": tail_run_twice},
    "tail not run": {"outlast.trainer.loop": tail_not_run},
}
