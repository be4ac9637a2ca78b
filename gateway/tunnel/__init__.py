"""The way of the bytes through a gateway. The rules of channels are the agents' (`landbridge.channel`): here, frames only pass.

routes      who may open which channel, and where it leads
pump        an agent's links <-> a tunnel; the only file that moves bytes
schedule    which frame goes next (pure): what is urgent, what is fair, what is limited, and how much may wait
tunnel      the links with another site's gateway, and the frames that they take
dial        keeps the links of tunnels up
"""
